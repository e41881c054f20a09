"""Bringing a run home: checked, resumable, never over another run; from a folder and a bucket."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import resolve
from saccade.launch.fetch import fetch_run, parse_address, store_of
from saccade.pipeline.targets import as_token
from saccade.training.finals import AREA
from saccade.training.mirror import Mirror
from saccade.training.rundir import RunDir
from saccade.training.store import FolderStore, Store, StoreError, open_store
from tests.slow_store import SlowFolder
from tests.storage_server import StorageServer
from tests.toy_trainer import digest_files, train

NAME = "far"


def quiet(text: str) -> None:
    """Say nothing."""


@pytest.fixture(params=["folder", "bucket"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    monkeypatch.setenv("TOY_STEP_SECONDS", "0")
    if request.param == "folder":
        yield open_store(str(tmp_path / "store"))
        return
    storage = pytest.importorskip("google.cloud.storage", reason="needs saccade[cloud]")
    with StorageServer(tmp_path / "cloud") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        storage.Client(project="p").create_bucket("bucket-a")
        yield open_store("gs://bucket-a")


def far_run(store: Store, folder: Path, *overrides: str, finished: bool = True) -> RunDir:
    """A run that was trained elsewhere into this store."""
    words = [f"run.root={folder}", f"run.name={NAME}", *overrides]
    run = RunDir.create(resolve("relevance", overrides=words))
    run.provenance_file.write_text(json.dumps({"time": time.time(), "data": {}}))
    train(run, Mirror(store, run=run, name=NAME, keep=2), rate=0.01)
    if not finished:
        store.delete(f"runs/{NAME}/DONE")
    return run


def test_a_finished_run_comes_home_whole_and_again_nothing_is_moved(
    store: Store, tmp_path: Path
) -> None:
    far = far_run(store, tmp_path / "far")
    found = fetch_run(store, name=NAME, to=tmp_path / "home", say=quiet)
    assert (found.finished, found.step) == (True, 30)
    home = digest_files(tmp_path / "home")
    there = digest_files(far.path)
    assert {name for name in there if name not in home} == {
        "checkpoints/step-20/COMPLETE", "checkpoints/step-20/checksums.json",
        "checkpoints/step-20/state.json",
    }  # fmt: skip
    assert all(there[name] == content for name, content in home.items())
    assert RunDir.open(tmp_path / "home").config().recipe == "relevance"
    again = fetch_run(store, name=NAME, to=tmp_path / "home", say=quiet)
    assert (again.files, again.finished) == (0, True)
    assert not (tmp_path / "home" / AREA).exists()


def test_a_damaged_file_here_is_replaced_and_one_there_is_refused(
    store: Store, tmp_path: Path
) -> None:
    far_run(store, tmp_path / "far")
    fetch_run(store, name=NAME, to=tmp_path / "home", say=quiet)
    part = tmp_path / "home" / "model" / "part-3.bin"
    whole = part.read_bytes()
    part.write_bytes(b"x" * len(whole))
    assert fetch_run(store, name=NAME, to=tmp_path / "home", say=quiet).files == 1
    assert part.read_bytes() == whole
    store.write(f"runs/{NAME}/final/model/part-3.bin", b"x" * len(whole))
    with pytest.raises(StoreError, match=r"part-3\.bin: differs from its checksum"):
        fetch_run(store, name=NAME, to=tmp_path / "new", say=quiet)
    assert not (tmp_path / "new" / "DONE").exists()
    assert not (tmp_path / "new" / "model").exists()
    store.delete(f"runs/{NAME}/final/checksums.json")
    with pytest.raises(StoreError, match=r"checksums\.json: is missing"):
        fetch_run(store, name=NAME, to=tmp_path / "newer", say=quiet)


def test_an_unfinished_run_comes_as_far_as_it_got_and_follows(store: Store, tmp_path: Path) -> None:
    far = far_run(store, tmp_path / "far", finished=False)
    found = fetch_run(store, name=NAME, to=tmp_path / "home", say=quiet)
    assert (found.finished, found.step) == (False, 30)
    home = RunDir.open(tmp_path / "home")
    assert home.latest_checkpoint() == home.checkpoints / "step-30"
    with far.events_file.open("a") as file:
        file.write('{"v": 1, "time": 1, "type": "warning", "message": "later"}\n')
    Mirror(store, run=far, name=NAME, keep=2).push_events()
    fetch_run(store, name=NAME, to=tmp_path / "home", say=quiet)
    assert "later" in home.events_file.read_text()
    Mirror(store, run=far, name=NAME, keep=2).push_finals()
    assert fetch_run(store, name=NAME, to=tmp_path / "home", say=quiet).finished


def test_another_run_here_is_never_written_to(store: Store, tmp_path: Path) -> None:
    far_run(store, tmp_path / "far")
    other = tmp_path / "other"
    words = [f"run.root={tmp_path}", "run.name=other", "run.seed=7"]
    RunDir.create(resolve("relevance", overrides=words))
    before = digest_files(other)
    with pytest.raises(InputError, match=r"run\.seed: 0 there, 7 here"):
        fetch_run(store, name=NAME, to=other, say=quiet)
    shutil.rmtree(other)
    run = RunDir.create(resolve("relevance", overrides=words[:2]))
    run.provenance_file.write_text('{"time": 1, "data": {}}')
    with pytest.raises(InputError, match="it was started by itself"):
        fetch_run(store, name=NAME, to=other, say=quiet)
    run.provenance_file.unlink()
    run.finish(step=30, metrics={"loss": 0.5})
    with pytest.raises(InputError, match="it ended by itself"):
        fetch_run(store, name=NAME, to=other, say=quiet)
    assert not (other / "model").exists()
    assert set(before) <= set(digest_files(other))


def test_a_run_that_is_not_there_yet_is_said_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="nothing is there yet"):
        fetch_run(store, name=NAME, to=tmp_path / "home", say=quiet)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_fetch_that_is_killed_again_and_again_ends_like_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setenv("TOY_STEP_SECONDS", "0")
    far_run(FolderStore(tmp_path / "store"), tmp_path / "far")
    fetch_run(FolderStore(tmp_path / "store"), name=NAME, to=tmp_path / "calm", say=quiet)
    chance, home, kills = random.Random(seed), tmp_path / "home", 0
    slow, forked = SlowFolder(tmp_path / "store"), multiprocessing.get_context("fork")
    while True:
        slow.stands_still_after = chance.randrange(3) if kills < 3 else None
        process = forked.Process(
            target=fetch_run, args=(slow,), kwargs={"name": NAME, "to": home, "say": quiet}
        )
        process.start()
        # longer each time: a slow machine needs some progress between two kills
        process.join(chance.uniform(0.01, 0.1) * (1 + kills / 5))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
        # whatever stands under its final name is whole
        calm = digest_files(tmp_path / "calm")
        assert all(calm[name] == content for name, content in digest_files(home).items())
    assert (process.exitcode, kills > 2) == (0, True)
    assert digest_files(home) == digest_files(tmp_path / "calm")
    assert not list(home.rglob(".tmp-*"))


def test_addresses_and_tokens_are_read_as_people_write_them() -> None:
    assert parse_address("gs://b/team/runs/mine/") == ("gs://b/team", "mine")
    assert parse_address("/mnt/store/runs/mine") == ("/mnt/store", "mine")
    assert parse_address("mine") is None
    assert parse_address("runs/mine") is None
    with pytest.raises(InputError, match="hf buckets sync hf://buckets/me/b/runs/NAME/final"):
        store_of("hf://buckets/me/b", env={})
    assert as_token("train-0123456789ab") == "train-0123456789ab"
    long = as_token("A_stage.with-a-long-and-odd-name-0123456789ab")
    assert len(long) == 40
    assert long != as_token("a_stage.with-a-long-and-odd-name-0123456789ab")
