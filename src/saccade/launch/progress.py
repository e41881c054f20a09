"""How far the training of a launch is: heartbeat and DONE, read from where the job writes them.

A `LaunchView` flows in; the fields of a `heartbeat` event and the content of DONE flow out. Jobs
with a store leave small JSON files there (`runs/NAME/heartbeat.json`, `runs/NAME/DONE`); jobs on
this machine without one are read from their run directory. A read error is raised, never taken for
absence: without the store nobody can tell success from failure. Left out: writing these files.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.config.errors import OutsideError
from saccade.launch.view import LaunchView

TAIL_BYTES = 200_000
"""End of a run's event log in which its last step and checkpoint are looked for."""


@dataclass(frozen=True)
class Progress:
    """What the job left behind so far."""

    beat: dict[str, Any] | None = None
    done: dict[str, Any] | None = None


def read_progress(view: LaunchView, *, env: Mapping[str, str]) -> Progress:
    """Read heartbeat and DONE; raises OutsideError when the store does not answer."""
    spec = view.spec
    if spec is None:
        return Progress()
    if not spec.store:
        return _of_run_dir(Path(view.run_dir), view=view)
    done = read_json(f"{spec.store}/runs/{spec.run}/DONE", env=env, project=_project(view))
    raw = read_json(f"{spec.store}/runs/{spec.run}/heartbeat.json", env=env, project=_project(view))
    return Progress(beat=_beat(raw, view=view) if raw else None, done=done)


def read_json(uri: str, *, env: Mapping[str, str], project: str | None) -> dict[str, Any] | None:
    """Read a small JSON object from a folder or a bucket; None when it is not there."""
    if uri.startswith("gs://"):
        content = _from_bucket(uri, env=env, project=project)
    elif uri.startswith("hf://buckets/"):
        content = _from_hub(uri, env=env)
    else:
        content = _from_folder(Path(uri))
    if content is None:
        return None
    try:
        value = json.loads(content)
    except ValueError:  # half written: the next look will find it whole
        return None
    return value if isinstance(value, dict) else None


def _project(view: LaunchView) -> str | None:
    return (view.spec.env.get("GOOGLE_CLOUD_PROJECT") or None) if view.spec else None


def _from_folder(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutsideError(f"{path}: cannot be read: {error.strerror}") from error


def _from_bucket(uri: str, *, env: Mapping[str, str], project: str | None) -> bytes | None:
    from saccade.cloud.api import storage
    from saccade.cloud.api.errors import NotFound
    from saccade.cloud.api.transport import connect

    bucket, _, name = uri.removeprefix("gs://").partition("/")
    try:
        return storage.read_object(connect(project, env=env), bucket, name)
    except NotFound:
        return None


def _from_hub(uri: str, *, env: Mapping[str, str]) -> bytes | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    owner, name, path = uri.removeprefix("hf://buckets/").split("/", 2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        try:
            api = HfApi(endpoint=env.get("HF_ENDPOINT") or None, token=env.get("HF_TOKEN") or None)
            api.download_bucket_files(f"{owner}/{name}", files=[(path, file)])
        except (HfHubHTTPError, OSError) as error:
            said = str(error).strip().splitlines()[0]
            raise OutsideError(f"{uri}: cannot be read: {said}") from error
        return file.read_bytes() if file.is_file() else None


def _beat(raw: Mapping[str, Any], *, view: LaunchView) -> dict[str, Any] | None:
    try:
        return {
            "attempt": int(raw.get("attempt") or view.attempt), "step": int(raw["step"]),
            "beat_at": float(raw["time"]), "steps": raw.get("steps"), "loss": raw.get("loss"),
            "phase": raw.get("phase"), "samples_per_s": raw.get("samples_per_second"),
            "checkpoint": _mark(raw.get("last_checkpoint")),
        }  # fmt: skip
    except (KeyError, TypeError, ValueError):  # of another version: as good as none
        return None


def _mark(raw: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not raw or raw.get("step") is None:
        return None
    return {
        "step": int(raw["step"]), "at": raw.get("uploaded_at"), "bytes": raw.get("bytes"),
        "sha256": raw.get("sha256"),
    }  # fmt: skip


def _of_run_dir(folder: Path, *, view: LaunchView) -> Progress:
    done = read_json(str(folder / "DONE"), env={}, project=None)
    step = checkpoint = None
    steps = None
    for event in _tail(folder / "events.jsonl"):
        kind = event.get("type")
        if kind == "step":
            step = event
        elif kind == "checkpoint":
            checkpoint = event
        elif kind in ("run_start", "plan"):
            steps = event.get("steps", steps)
    if step is None:
        return Progress(done=done)
    # an event from before this attempt's job belongs to the attempt before
    old = view.submitted_at is not None and step["time"] < view.submitted_at
    mark = None
    if checkpoint is not None:
        mark = {
            "step": checkpoint["step"], "at": checkpoint["time"], "bytes": checkpoint.get("bytes"),
            "sha256": None,
        }  # fmt: skip
    beat = {
        "attempt": view.attempt - 1 if old else view.attempt, "step": step["step"],
        # a checkpoint written on the way out is news, too
        "beat_at": max(step["time"], mark["at"] if mark else 0.0),
        "steps": steps, "loss": step.get("loss"),
        "phase": "training", "samples_per_s": step.get("samples_per_s"), "checkpoint": mark,
    }  # fmt: skip
    return Progress(beat=beat, done=done)


def _tail(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutsideError(f"{path}: cannot be read: {error.strerror}") from error
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found
