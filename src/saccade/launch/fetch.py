"""Bringing a launched run home: from its store into a run directory of this machine.

A launch (or a store's address) and a folder flow in; an ordinary run directory flows out, finished
or as far as the job got. Files are checked against the checksums they were delivered with, written
aside and renamed, DONE last, so the same call continues after a kill. A folder that holds another
run is never written to. Left out: what a store is (`training/store.py`) and what lies where in it
(`training/mirror.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError, OutsideError, SaccadeError
from saccade.launch.inputs import bring_back
from saccade.launch.log import Launch
from saccade.launch.view import LaunchView, Mark
from saccade.training.checkpoints import newest_good, step_of
from saccade.training.finals import Brought
from saccade.training.mirror import Mirror
from saccade.training.rundir import RunDir
from saccade.training.store import Store, open_store

if TYPE_CHECKING:
    from saccade.launch.plan import LaunchPlan

RUNS = "runs"
"""Folder of a store that holds the runs."""
HUB = "hf://"
"""Stores that only Hugging Face's own tool reads."""
FETCHING = "bringing a launched run into"
"""What a fetch does, for another process that meets its lock."""
AGAIN_S = 10.0
"""Pause after a log that could not be brought."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Fetched:
    """Where a run is now, and what was moved for it."""

    run: str
    folder: Path
    store: str
    finished: bool
    step: int | None
    files: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"folder": str(self.folder)}


def fetch_launch(
    launch: Launch, *, env: Mapping[str, str], say: Say, to: Path | None = None
) -> Fetched:
    """Bring the run of a launch to its place under `run.root`, or into the folder `to`.

    Raises InputError when the folder holds another run, or there is nothing to bring; OutsideError
    when the store does not answer, has nothing yet, or holds damaged files.
    """
    view = launch.view()
    place = place_of(view, to=to)
    if place is None:
        return _here(view)
    store, name = place
    folder, homes = target_of(view, to=to), homes_of(view)
    found = fetch_run(store_of(store, env=env), name=name, to=folder, say=say, homes=homes)
    if found.finished and not (view.home and Path(view.home) == folder):
        launch.append("fetched", folder=str(folder))
    return found


def homes_of(view: LaunchView) -> Mapping[str, str]:
    """Where on this machine the inputs of a launch are, by their place in the store."""
    return view.spec.inputs if view.spec else {}


def place_of(view: LaunchView, *, to: Path | None = None) -> tuple[str, str] | None:
    """Store and name of a launch's run; None when it is where it shall be already."""
    if view.spec is None:
        raise InputError(
            f"{view.key}: its log has no plan\n  fix: repeat the `saccade launch` command"
        )
    if view.target == "local" and target_of(view, to=to) == Path(view.run_dir):
        return None
    if not view.spec.store:
        raise _no_store(view.key, Path(view.run_dir))
    return view.spec.store, view.spec.run


def check_home(plan: LaunchPlan, *, to: Path) -> None:
    """Raise InputError, before anything is spent, when the run could not come home to `to`."""
    if plan.target.name == "local" and to.absolute() == plan.run_dir:
        return
    if not plan.spec.store:
        raise _no_store(plan.launch.key, plan.run_dir)
    store_of(plan.spec.store, env=plan.env)


def _no_store(key: str, run_dir: Path) -> InputError:
    return InputError(
        f"{key}: its run is {run_dir}, a folder of this machine; there is no store to fetch it from"
        "\n  fix: copy that folder, or launch with run.store=FOLDER"
    )


def target_of(view: LaunchView, *, to: Path | None) -> Path:
    """The run directory that a launch comes home to."""
    return Path(view.run_dir) if to is None else to.absolute()


def store_of(address: str, *, env: Mapping[str, str]) -> Store:
    """Open the store of a launch; raises InputError for one that only its own tool reads."""
    if address.startswith(HUB):
        raise InputError(
            f"{address}: a bucket of Hugging Face is read by its own tool"
            f"\n  fix: hf buckets sync {address.rstrip('/')}/{RUNS}/NAME/final FOLDER"
        )
    return open_store(address, env=env)


def parse_address(text: str) -> tuple[str, str] | None:
    """Store and name of `STORE/runs/NAME`; None for a text that is no address."""
    head, separator, name = text.rstrip("/").rpartition(f"/{RUNS}/")
    return (head, name) if separator and head and "/" not in name else None


def fetch_run(
    store: Store, *, name: str, to: Path, say: Say, homes: Mapping[str, str] | None = None
) -> Fetched:
    """Bring the run `name` of a store into the folder `to`, as `fetch_launch` does.

    `homes` says where the inputs it was trained from are on this machine, by their place.
    """
    run = RunDir(to)
    mirror = Mirror(store, run=run, name=name, keep=1, homes=homes)
    done = mirror.done()
    if done is None and store.read(f"{mirror.home}/config.yaml") is None:
        raise OutsideError(
            f"{store.address}/{mirror.home}: nothing is there yet"
            "\n  fix: wait for the job's first checkpoint (`saccade jobs`), then fetch again"
        )
    run.prepare()
    with run.lock(doing=FETCHING):
        refuse_different(mirror, run, done=done)
        brought = mirror.pull_finals(say=say) if done else _bring_unfinished(mirror, run, say=say)
        bring_back(run.path, homes=mirror.homes)
    return Fetched(
        name, to, store.address, run.done() is not None, _step(run), brought.files, brought.bytes
    )


def refuse_different(mirror: Mirror, run: RunDir, *, done: Mapping[str, Any] | None) -> None:
    """Raise InputError when the folder holds another run than the store."""
    mirror.refuse_another_run()  # other values
    here, there = run.provenance(), mirror.store.read(f"{mirror.home}/provenance.json")
    if here is not None and there is not None and here != _parsed(there):
        raise _different(mirror, run, "it was started by itself")
    if done is not None and run.done() not in (None, done):
        raise _different(mirror, run, "it ended by itself")


def _different(mirror: Mirror, run: RunDir, why: str) -> InputError:
    return InputError(
        f"{run.path}: holds another run than {mirror.store.address}/{mirror.home} ({why})"
        "\n  fix: fetch into another folder with --to FOLDER, or move this one away"
    )


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _bring_unfinished(mirror: Mirror, run: RunDir, *, say: Say) -> Brought:
    if run.done() is not None:
        say(f"{run.path}: is finished here, and not in {mirror.store.address}")
        return Brought()
    mirror.pull(say=say, warn=lambda text: say(f"warning: {text}"))
    there = max(mirror.steps(), default=0)
    if (_newest_step(run) or 0) <= there:  # who continued it here has a log of his own
        mirror.pull_events()
    return Brought()


def _step(run: RunDir) -> int | None:
    done = run.done()
    return _newest_step(run) if done is None else done.get("target_step")


def _newest_step(run: RunDir) -> int | None:
    newest = newest_good(run.checkpoints).folder
    return None if newest is None else step_of(newest)


def _here(view: LaunchView) -> Fetched:
    run = RunDir(Path(view.run_dir))
    return Fetched(view.run, run.path, str(run.path), run.done() is not None, _step(run))


@dataclass
class Follower:
    """Keeps the event log of a launched run fresh in a folder, for whoever reads it here."""

    env: Mapping[str, str]
    to: Path
    clock: Callable[[], float] = time.monotonic
    seen: Mark | None = None
    not_before: float = 0.0

    def look(self, view: LaunchView) -> None:
        """Bring the log when a checkpoint is new: with each one the job uploads its log."""
        if view.over or view.mark is None or view.mark == self.seen:
            return
        if self.clock() < self.not_before:
            return
        try:
            self._bring(view)
        except (OSError, SaccadeError):  # a courtesy: the end of the launch brings everything
            self.not_before = self.clock() + AGAIN_S
            return
        self.seen = view.mark

    def _bring(self, view: LaunchView) -> None:
        place = place_of(view, to=self.to)
        if place is None:
            return
        run = RunDir(self.to)
        mirror = Mirror(
            store_of(place[0], env=self.env), run=run, name=place[1], keep=1, homes=homes_of(view)
        )
        run.prepare()
        with run.lock(doing=FETCHING):
            refuse_different(mirror, run, done=None)
            mirror.pull_origin()
            mirror.pull_events()
