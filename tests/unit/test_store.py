"""Stores (a folder, a bucket) and what a run keeps in one; a bucket behaves like a folder."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import resolve
from saccade.training.checkpoints import COMPLETE, verify, write_checkpoint
from saccade.training.mirror import Mirror
from saccade.training.rundir import RunDir
from saccade.training.store import Store, StoreConflict, StoreError, open_store, safe_name
from saccade.training.uploads import Uploads
from tests.storage_server import StorageServer

NAME = "run-a"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageServer]:
    storage = pytest.importorskip("google.cloud.storage", reason="needs saccade[cloud]")
    with StorageServer(tmp_path / "cloud") as one:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", one.url)
        monkeypatch.setattr("saccade.training.store_bucket.RETRY_SECONDS", 2.0)
        storage.Client(project="p").create_bucket("bucket-a")
        yield one


@pytest.fixture(params=["folder", "bucket", "bucket with prefix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("server")
    return open_store("gs://bucket-a" + ("/team/x" if "prefix" in request.param else ""))


def checkpoint(run: RunDir, step: int, *, size: int = 1000, keep: int = 2) -> Path:
    files = {
        "model.safetensors": lambda file: file.write(bytes([step % 256]) * size),
        "state.json": lambda file: file.write(json.dumps({"step": step}).encode()),
    }
    return write_checkpoint(run.checkpoints, step=step, files=files, keep=keep).folder


def make_run(root: Path, *, seed: int = 0) -> RunDir:
    overrides = [f"run.root={root}", f"run.name={NAME}", f"run.seed={seed}"]
    run = RunDir.create(resolve("relevance", overrides=overrides))
    run.provenance_file.write_text('{"data": {}}')
    run.events_file.write_text('{"v": 1, "time": 1, "type": "warning", "message": "x"}\n')
    return run


def mirror_of(store: Store, run: RunDir) -> Mirror:
    return Mirror(store, run=run, name=NAME, keep=2)


def silent(text: str) -> None:
    """Say nothing."""


def test_files_come_back_as_they_went(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 5000)
    stored = store.send("a/b.bin", source)
    assert store.stat("a/b.bin") == stored
    assert (stored.size, stored.checksum) == (1_280_000, store.checksum(source))
    store.fetch("a/b.bin", target)
    assert target.read_bytes() == source.read_bytes()
    store.write("a/c", b"")
    assert store.read("a/c") == b""
    assert store.names("a/") == ["a/b.bin", "a/c"]
    store.delete("a/c")
    store.delete("a/c")
    assert store.read("a/c") is None
    assert store.stat("a/c") is None


def test_a_write_may_demand_what_it_replaces(store: Store) -> None:
    first = store.write("x", b"1", replaces=0)
    with pytest.raises(StoreConflict):
        store.write("x", b"2", replaces=0)
    store.write("x", b"2", replaces=first.generation)
    with pytest.raises(StoreConflict):
        store.write("x", b"3", replaces=first.generation)
    assert store.read("x") == b"2"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//b", ".", "a\\..\\b", "a\n", ""])
def test_names_cannot_leave_the_store(name: str, store: Store) -> None:
    with pytest.raises(InputError):
        safe_name(name)
    with pytest.raises(InputError):
        store.write(name, b"x")
    with pytest.raises(InputError):
        open_store(f"gs://bucket-a/ok/{name}/more" if name != "" else "gs://")


def test_a_missing_bucket_is_not_an_empty_store(server: StorageServer) -> None:
    store = open_store("gs://bucket-z")
    with pytest.raises(StoreError, match="bucket"):
        store.read("x")
    with pytest.raises(StoreError, match="saccade cloud setup"):
        store.names("x/")


def test_a_store_that_is_away_says_so(server: StorageServer) -> None:
    server.fault = lambda request: 403
    with pytest.raises(StoreError, match="access refused"):
        open_store("gs://bucket-a").read("x")
    server.fault = lambda request: "drop"
    with pytest.raises(StoreError, match="cannot be reached"):
        open_store("gs://bucket-a").write("x", b"1")


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(InputError, match="s3://"):
        open_store("s3://bucket")


@pytest.mark.parametrize("fault", ["drop", "lose", 503])
def test_passing_faults_are_survived_and_leave_the_random_generator_alone(
    fault: str | int, server: StorageServer, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 600_000)
    random.seed(7)
    before = random.getstate()
    count = 0

    def every_third(request: object) -> str | int | None:
        nonlocal count
        count += 1
        return fault if count % 3 == 0 else None

    server.fault = every_third
    store = open_store("gs://bucket-a")
    for number in range(4):
        store.send(f"file-{number}", source, replaces=0)
        assert store.sha256(f"file-{number}")
    assert random.getstate() == before


def test_a_checkpoint_goes_up_and_comes_down_elsewhere(store: Store, tmp_path: Path) -> None:
    run = make_run(tmp_path / "here")
    mirror = mirror_of(store, run)
    for step in (5, 10, 15):
        done = mirror.push_checkpoint(checkpoint(run, step), step=step)
    assert done.sha256 == (run.checkpoints / "step-15" / COMPLETE).read_text().strip()
    assert mirror.steps() == [15, 10]  # older ones are dropped
    assert not store.names(f"attempts/{NAME}/checkpoints/step-5/")
    other = RunDir(tmp_path / "elsewhere" / NAME)
    other.prepare()
    mirror_of(store, other).pull(say=silent, warn=silent)
    assert [path.name for path in sorted(other.checkpoints.iterdir())] == ["step-15"]
    assert verify(other.checkpoints / "step-15") is None
    for name in ("config.yaml", "provenance.json", "events.jsonl"):
        assert (other.path / name).read_text() == (run.path / name).read_text()


def test_a_half_uploaded_or_damaged_checkpoint_is_passed_over(store: Store, tmp_path: Path) -> None:
    run = make_run(tmp_path / "here")
    mirror = mirror_of(store, run)
    for step in (5, 10):
        mirror.push_checkpoint(checkpoint(run, step), step=step)
    at = f"attempts/{NAME}/checkpoints"
    store.write(f"{at}/step-10/model.safetensors", b"rotten")
    store.write(f"{at}/step-15/model.safetensors", b"half")  # no COMPLETE
    other = RunDir(tmp_path / "elsewhere" / NAME)
    other.prepare()
    warnings: list[str] = []
    mirror_of(store, other).pull(say=silent, warn=warnings.append)
    assert [path.name for path in other.checkpoints.iterdir()] == ["step-5"]
    (warning,) = warnings
    assert "step-10/model.safetensors" in warning
    # the same step, trained again, replaces the damaged one
    mirror_of(store, other).push_checkpoint(checkpoint(other, 10), step=10)
    assert mirror.steps() == [10, 5]
    shutil.rmtree(other.checkpoints)
    other.prepare()
    mirror_of(store, other).pull(say=silent, warn=warnings.append)
    assert verify(other.checkpoints / "step-10") is None


def test_an_upload_that_dies_anywhere_leaves_the_checkpoint_before_it(
    store: Store, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "here")
    mirror_of(store, run).push_checkpoint(checkpoint(run, 5), step=5)
    folder, calls = checkpoint(run, 10), 0

    class Dying:
        """The store as a process sees it that is killed at its n-th change."""

        def __init__(self, lives: int) -> None:
            self.lives = lives

        def __getattr__(self, name: str) -> Any:
            method = getattr(store, name)
            if name not in ("write", "send", "delete"):
                return method

            def change(*arguments: Any, **keywords: Any) -> Any:
                self.lives -= 1
                if self.lives < 0:
                    raise KeyboardInterrupt
                return method(*arguments, **keywords)

            return change

    while True:
        for name in store.names(f"attempts/{NAME}/checkpoints/step-10/"):
            store.delete(name)
        dying: Any = Dying(calls)
        try:
            mirror_of(dying, run).push_checkpoint(folder, step=10)
        except KeyboardInterrupt:
            calls += 1
            other = RunDir(tmp_path / f"elsewhere-{calls}" / NAME)
            other.prepare()
            mirror_of(store, other).pull(say=silent, warn=pytest.fail)
            (found,) = other.checkpoints.iterdir()
            assert found.name in ("step-5", "step-10")
            assert verify(found) is None
        else:
            break
    assert calls >= 5
    assert mirror_of(store, run).steps() == [10, 5]


def test_a_local_run_that_is_further_is_left_alone(store: Store, tmp_path: Path) -> None:
    run = make_run(tmp_path / "here")
    mirror = mirror_of(store, run)
    mirror.push_checkpoint(checkpoint(run, 5), step=5)
    checkpoint(run, 10)
    run.events_file.write_text("{}\n")
    mirror.pull(say=silent, warn=pytest.fail)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-10", "step-5"]
    assert run.events_file.read_text() == "{}\n"


def test_another_training_under_the_same_name_is_refused(store: Store, tmp_path: Path) -> None:
    mirror_of(store, make_run(tmp_path / "here")).push_origin()
    other = make_run(tmp_path / "elsewhere", seed=1)
    with pytest.raises(InputError, match=r"run\.seed: 0 there, 1 here"):
        mirror_of(store, other).pull(say=silent, warn=silent)


def test_a_finished_run_is_delivered_whole_and_done_comes_last(
    store: Store, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "here")
    for step in (5, 10):
        checkpoint(run, step)
    (run.path / "model").mkdir()
    (run.path / "model" / "weights").write_bytes(b"w" * 300_000)
    (run.path / "wandb").mkdir()
    (run.path / "wandb" / "debug.log").write_text("private")
    run.finish(step=10, metrics={"loss": 1.0})
    written: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name in ("write", "send"):
                return lambda key, *a, **k: (
                    written.append(key),
                    getattr(store, name)(key, *a, **k),
                )[1]
            return getattr(store, name)

    watched: Any = Watched()
    mirror = mirror_of(watched, run)
    mirror.push_finals()
    assert written[-1] == f"runs/{NAME}/DONE"
    names = [name.removeprefix(f"runs/{NAME}/final/") for name in store.names(f"runs/{NAME}/final")]
    assert {"model/weights", "events.jsonl", "checkpoints/step-10/COMPLETE"} <= set(names)
    assert not [name for name in names if "wandb/" in name or "step-5" in name or "lock" in name]
    assert not store.names("attempts/")
    other = RunDir(tmp_path / "elsewhere" / NAME)
    other.prepare()
    mirror_of(store, other).pull(say=silent, warn=pytest.fail)
    assert other.done() == run.done()
    assert (other.path / "model" / "weights").read_bytes() == b"w" * 300_000
    assert other.latest_checkpoint() == other.checkpoints / "step-10"


def test_done_is_not_written_when_a_final_file_reads_back_differently(
    server: StorageServer, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "here")
    run.finish(step=1, metrics={})
    (run.path / "model").write_bytes(b"weights")
    store = open_store("gs://bucket-a")
    honest = store.sha256
    rotten: Any = store
    rotten.sha256 = lambda name: "0" * 64 if name.endswith("/model") else honest(name)
    with pytest.raises(StoreError, match="final/model: reads back differently"):
        mirror_of(rotten, run).push_finals()
    assert mirror_of(store, run).done() is None


def test_only_the_newest_waiting_checkpoint_is_uploaded(tmp_path: Path) -> None:
    import threading

    gate, pushed = threading.Event(), []

    def push(folder: Path, *, step: int) -> Any:
        gate.wait(100)
        assert verify(folder) is None  # although the run itself dropped it meanwhile
        pushed.append(step)
        return SimpleNamespace(step=step, bytes=1, seconds=0.1)

    fake: Any = SimpleNamespace(push_checkpoint=push, push_events=lambda: None)
    uploads, run = Uploads(fake), make_run(tmp_path)
    for step in (5, 10, 15, 20):
        uploads.submit(checkpoint(run, step), step=step)
        if step == 5:
            while uploads._next is not None:
                time.sleep(0.001)
    assert not uploads.wait(0.05)
    gate.set()
    assert uploads.wait(100)
    assert uploads.close(100)
    assert pushed == [5, 20]
    kinds = [report.type for report in uploads.reports()]
    assert kinds == ["upload_skipped", "upload_skipped", "upload", "upload"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-15", "step-20"]


@pytest.mark.parametrize("failures", [2, 3])
def test_a_failed_upload_is_tried_again_and_then_reported(failures: int, tmp_path: Path) -> None:
    tries: list[int] = []

    def push(folder: Path, *, step: int) -> Any:
        tries.append(step)
        if len(tries) <= failures:
            raise OutsideError("the store is away")
        return SimpleNamespace(step=step, bytes=1, seconds=0.1)

    fake: Any = SimpleNamespace(push_checkpoint=push, push_events=lambda: None)
    uploads, run = Uploads(fake, pause_s=0.01), make_run(tmp_path)
    uploads.submit(checkpoint(run, 5), step=5)
    assert uploads.wait(100)
    (report,) = uploads.reports()
    assert report.type == ("upload" if failures == 2 else "upload_failed")
    assert len(tries) == 3
    assert uploads.close(100)


def test_the_store_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, saccade.training.survival; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
