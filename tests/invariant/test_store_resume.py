"""A run with a store loses its machine again and again, and ends like one that was never touched.

The toy and a real recipe train in processes that are really killed, between steps and in the
middle of an upload; each time their folder is deleted, and the run goes on elsewhere from a bucket
of the fake storage.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import ForkedRun, train_toy

from saccade.cloud.fake.http import Request
from saccade.config.errors import OutsideError
from saccade.config.resolve import resolve
from saccade.training.checkpoints import COMPLETE
from saccade.training.events import read_events, step_series
from saccade.training.run import train
from saccade.training.store import open_store
from saccade.training.uploads import Uploads
from tests.storage_server import StorageServer
from tests.tiny_models import random_backbone

STORE = "run.store=gs://bucket-a"
QUICK = ("run.heartbeat_seconds=0.1",)


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageServer]:
    storage = pytest.importorskip("google.cloud.storage", reason="needs saccade[cloud]")
    with StorageServer(tmp_path / "cloud") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        storage.Client(project="p").create_bucket("bucket-a")
        server.calls.clear()
        yield server


def kill_at(
    server: StorageServer, run: ForkedRun, when: Callable[[Request], bool], *, sig: int
) -> None:
    """Send the signal when a request comes in; its own answer is lost with the process."""

    def watch(request: Request) -> str | None:
        if run.poll() is None and when(request):
            run.send_signal(sig)
            return "drop" if sig == signal.SIGKILL else None
        return None

    server.fault = watch


def train_in_step_with_uploads(folder: Path, overrides: Sequence[str]) -> Any:
    """The toy, waiting for each upload: what is killed in one is in the middle of training."""
    submit = Uploads.submit

    def submit_and_wait(self: Uploads, folder: Path, *, step: int) -> None:
        submit(self, folder, step=step)
        self.wait(200)

    Uploads.submit = submit_and_wait  # in a fork that ends with this call
    return train_toy(folder, overrides)


def start(folder: Path, *overrides: str, attempt: int = 1, train: Any = train_toy) -> ForkedRun:
    folder.parent.mkdir(parents=True, exist_ok=True)
    env = {"SACCADE_ATTEMPT": str(attempt)}
    return ForkedRun(folder, [STORE, *QUICK, *overrides], env=env, train=train)


def opens_upload_of(step: int | None, file: str) -> Callable[[Request], bool]:
    def match(request: Request) -> bool:
        opening = request.method == "POST" and request.path.startswith("/upload/")
        name = json.loads(request.body or b"{}").get("name", "") if opening else ""
        where = name.endswith(f"/checkpoints/step-{step}/{file}")
        return where or (step is None and "/checkpoints/" in name and name.endswith(file))

    return match


def curve(folder: Path) -> list[tuple[int, float, list[str]]]:
    series = step_series(read_events(folder / "events.jsonl"))
    return [(event["step"], event["loss"], event["sample_ids"]) for event in series]


def same_weights(one: Path, other: Path, file: str = "final.pt") -> bool:
    first, second = (torch.load(path / file) for path in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def test_machines_lost_between_steps_and_in_uploads_change_nothing(
    cloud: StorageServer, tmp_path: Path
) -> None:
    train_toy(tmp_path / "peaceful" / "toy")
    deaths = [
        (opens_upload_of(5, "optimizer.pt"), signal.SIGKILL),  # in the first upload of all
        (opens_upload_of(10, COMPLETE), signal.SIGKILL),
        (opens_upload_of(15, "model.safetensors"), signal.SIGTERM),
        (opens_upload_of(25, "trainer_state.json"), signal.SIGKILL),
    ]
    started_at = []
    for machine, (when, sig) in enumerate(deaths):
        folder = tmp_path / f"machine-{machine}" / "toy"
        run = start(folder, attempt=machine + 1, train=train_in_step_with_uploads)
        kill_at(cloud, run, when, sig=sig)
        assert run.wait() == (143 if sig == signal.SIGTERM else -sig), run.output()
        started_at.append(run.output().count("was fetched"))
        shutil.rmtree(folder)
    cloud.fault = lambda request: None
    last = tmp_path / "machine-last" / "toy"
    run = start(last, "training.workers=2")  # which fork beside the uploading thread
    assert run.wait() == 0, run.output()
    assert started_at == [0, 0, 1, 1]
    assert same_weights(tmp_path / "peaceful" / "toy", last)
    assert curve(tmp_path / "peaceful" / "toy") == curve(last)
    store = open_store("gs://bucket-a")
    assert json.loads(store.read("runs/toy/DONE") or b"") == json.loads((last / "DONE").read_text())
    heartbeat = json.loads(store.read("runs/toy/heartbeat.json") or b"")
    assert (heartbeat["phase"], heartbeat["step"]) == ("done", 30)
    assert heartbeat["last_checkpoint"]["step"] == 30


def test_a_stopped_run_uploads_its_last_step_before_it_leaves(
    cloud: StorageServer, tmp_path: Path
) -> None:
    folder = tmp_path / "one" / "toy"
    run = start(folder, "training.save_every=100", "training.steps=5000")  # it is stopped before
    while not curve(folder):
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 143
    step = curve(folder)[-1][0]
    store = open_store("gs://bucket-a")
    assert store.read(f"attempts/toy/checkpoints/step-{step}/{COMPLETE}")
    assert json.loads(store.read("runs/toy/heartbeat.json") or b"")["phase"] == "preempted"
    events = (store.read("runs/toy/events.jsonl") or b"").decode()
    assert '"type": "preempted"' in events


def test_a_store_that_fails_in_the_middle_costs_warnings_only(
    cloud: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.training.uploads.FIRST_PAUSE_SECONDS", 0.01)
    folder = tmp_path / "one" / "toy"
    step_5 = opens_upload_of(5, "state.json")
    cloud.fault = lambda request: 403 if step_5(request) else None
    train_toy(folder, [STORE, *QUICK, "training.steps=10", "training.save_every=5"])
    events = read_events(folder / "events.jsonl")
    kinds = [event["type"] for event in events]
    assert ("upload_failed" in kinds) != ("upload_skipped" in kinds)  # as fast as the box is
    assert "upload" in kinds
    assert kinds.index("done") > 0
    assert open_store("gs://bucket-a").read("runs/toy/DONE")


def test_a_finished_run_that_cannot_be_delivered_says_so_and_is_delivered_later(
    cloud: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.training.survival.FIRST_PAUSE_SECONDS", 0.01)
    folder = tmp_path / "one" / "toy"
    cloud.fault = lambda request: (
        403 if request.method == "POST" and b"/final/" in request.body else None
    )
    settings = [STORE, *QUICK, "training.steps=5"]
    with pytest.raises(OutsideError, match="complete here, but it could not be delivered"):
        train_toy(folder, settings)
    assert (folder / "DONE").is_file()
    store = open_store("gs://bucket-a")
    assert store.read("runs/toy/DONE") is None
    cloud.fault = lambda request: None
    metrics = train_toy(folder, settings)
    assert store.read("runs/toy/DONE")
    # and on a third machine it is simply there
    elsewhere = tmp_path / "two" / "toy"
    assert train_toy(elsewhere, settings) == metrics
    assert same_weights(folder, elsewhere)


def test_a_store_that_is_away_at_the_start_is_the_users_to_mend(
    cloud: StorageServer, tmp_path: Path
) -> None:
    cloud.fault = lambda request: 403
    with pytest.raises(OutsideError, match="access refused"):
        train_toy(tmp_path / "one" / "toy", [STORE])


def train_recipe(recipe: str, base: Path, folder: Path, overrides: Sequence[str]) -> Any:
    place = (f"run.root={folder.parent}", f"run.name={folder.name}", f"model.name={base}")
    own = ("training.threads=1", "training.save_every=1", "training.eval_samples=4")
    return train(resolve(recipe, overrides=[*place, *own, *overrides]))


@pytest.mark.parametrize("recipe", ["smoke/relevance", "smoke/tiny-base"])
def test_a_real_recipe_goes_on_from_the_bucket(
    recipe: str, cloud: StorageServer, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    random_backbone().model.save_pretrained(base)
    random_backbone().processor.save_pretrained(base)
    work = partial(train_recipe, recipe, base)
    work(tmp_path / "peaceful" / "run", [])
    for file in ("optimizer.pt", COMPLETE, "random.pt"):
        folder = tmp_path / f"dies-at-{file}" / "run"
        run = start(folder, train=work)
        kill_at(cloud, run, opens_upload_of(None, file), sig=signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, run.output()
        shutil.rmtree(folder)
    cloud.fault = lambda request: None
    work(tmp_path / "last" / "run", [STORE])
    sums = [
        json.loads((tmp_path / one / "run/checkpoints/step-6/checksums.json").read_text())
        for one in ("peaceful", "last")
    ]
    assert sums[0] == sums[1]
