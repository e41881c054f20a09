"""The artifact store: content decides, aliases follow, damage is seen, nothing is half-written."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade.config.errors import OutsideError
from saccade.pipeline.artifacts import Best, DamagedArtifact, NoSuchArtifact, Store, digest_of


def folder(root: Path, **files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return root


def everything(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(params=["folder", "memory"])
def any_store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "folder":
        yield Store(tmp_path / "store")
        return
    yield Store(f"memory://{tmp_path.name}")


def test_what_is_stored_comes_back(any_store: Store, tmp_path: Path) -> None:
    made = folder(tmp_path / "model", weights="abc", sub__card="{}")
    version = any_store.put("m", made, lineage={"key": "k"})
    assert version.digest == digest_of(made)
    back = any_store.fetch(version.digest, to=tmp_path / "back")
    assert everything(back) == everything(made)
    assert any_store.fault(version.digest) is None
    assert any_store.names() == ["m"]


def test_a_single_file_keeps_its_name(store: Store, tmp_path: Path) -> None:
    path = folder(tmp_path / "in", **{"data.jsonl": "1"}) / "data.jsonl"
    version = store.put("d", path, lineage={})
    assert store.fetch(version.digest, to=tmp_path / "out") == tmp_path / "out" / "data.jsonl"


def test_storing_twice_makes_one_version_and_one_copy(store: Store, tmp_path: Path) -> None:
    made = folder(tmp_path / "model", a="same", b="same")
    first = store.put("m", made, lineage={"key": "k"})
    before = everything(tmp_path / "store")
    assert store.put("m", made, lineage={"key": "k"}) == first
    assert everything(tmp_path / "store") == before
    assert sum(name.startswith("blobs/") for name in before) == 1


def test_aliases_follow_the_versions(any_store: Store, tmp_path: Path) -> None:
    for number, score in enumerate([0.5, 0.9, 0.7]):
        made = folder(tmp_path / f"m{number}", w=str(number))
        any_store.put(
            "m", made, lineage={"key": str(number)}, metrics={"acc": score},
            best=Best("max", "acc"),
        )  # fmt: skip
    assert [one.version for one in any_store.versions("m")] == [1, 2, 3]
    assert any_store.find("m").version == 3
    assert any_store.find("m", "best").version == 2
    assert any_store.find("m", "v1").version == 1
    with pytest.raises(NoSuchArtifact, match="no v9; there is latest, best, v1"):
        any_store.find("m", "v9")


def test_an_unknown_name_is_answered_with_the_nearest(store: Store, tmp_path: Path) -> None:
    store.put("selector", folder(tmp_path / "m", w="1"), lineage={})
    with pytest.raises(NoSuchArtifact, match="did you mean selector"):
        store.find("selecter")
    with pytest.raises(NoSuchArtifact, match="no best version"):
        store.find("selector", "best")


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "manifest", "no manifest"])
def test_damage_is_seen_and_mended_by_storing_again(
    store: Store, tmp_path: Path, damage: str
) -> None:
    made = folder(tmp_path / "model", weights="abcdef")
    version = store.put("m", made, lineage={"key": "k"})
    blob = next((tmp_path / "store" / "blobs").rglob("*/*"))
    manifest = next((tmp_path / "store" / "manifests").iterdir())
    {
        "delete": blob.unlink,
        "truncate": lambda: blob.write_text("abc"),
        "flip": lambda: blob.write_text("abcdeg"),
        "manifest": lambda: manifest.write_text("{}"),
        "no manifest": manifest.unlink,
    }[damage]()
    fault = store.fault(version.digest)
    assert fault is not None
    assert str(tmp_path / "store") in fault
    with pytest.raises(DamagedArtifact):
        store.fetch(version.digest, to=tmp_path / "back")
    assert everything(tmp_path / "back") == {} if (tmp_path / "back").exists() else True
    assert store.put("m", made, lineage={"key": "k"}) == version
    assert store.fault(version.digest) is None


def test_a_version_file_that_cannot_be_read_is_named(store: Store, tmp_path: Path) -> None:
    made = folder(tmp_path / "model", w="1")
    store.put("m", made, lineage={"key": "k"})
    file = tmp_path / "store" / "names" / "m" / "v1.json"
    for content in ("{", '{"name": "m"}', "[]"):
        file.write_text(content)
        with pytest.raises(DamagedArtifact, match=r"v1\.json cannot be read\n  fix: delete"):
            store.find("m")
    file.unlink()
    assert store.put("m", made, lineage={"key": "k"}).version == 1


def test_a_fetched_copy_that_was_changed_is_fetched_again(store: Store, tmp_path: Path) -> None:
    version = store.put("m", folder(tmp_path / "model", a="1", b="2"), lineage={})
    back = store.fetch(version.digest, to=tmp_path / "back")
    (back / "a").write_text("changed")
    (back / "mine").write_text("kept")
    store.fetch(version.digest, to=tmp_path / "back")
    assert everything(back) == {"a": b"1", "b": b"2", "mine": b"kept"}


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    kept = store.put("m", folder(tmp_path / "one", a="1"), lineage={"key": "1"})
    before = everything(tmp_path / "store")
    large = folder(tmp_path / "two", big="x" * 300_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutsideError, match="no space left for the artifact m"):
            store.put("m", large, lineage={"key": "2"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert everything(tmp_path / "store") == before
    assert store.find("m") == kept
    assert store.put("m", large, lineage={"key": "2"}).version == 2


def test_many_writers_at_once_make_each_version_once(store: Store, tmp_path: Path) -> None:
    def write(number: int) -> None:
        made = folder(tmp_path / f"m{number}", w=str(number % 4))
        store.put("m", made, lineage={"key": str(number)})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    versions = store.versions("m")
    assert [one.version for one in versions] == list(range(1, 13))
    assert {one.lineage["key"] for one in versions} == {str(number) for number in range(12)}
    assert not list((tmp_path / "store").rglob(".tmp-*"))


def test_leftovers_of_a_killed_writer_disappear(store: Store, tmp_path: Path) -> None:
    store.put("m", folder(tmp_path / "one", a="1"), lineage={"key": "1"})
    leftover = tmp_path / "store" / "names" / "m" / ".tmp-dead"
    leftover.write_text("half")
    os.utime(leftover, (0, 0))
    store.put("m", folder(tmp_path / "two", a="2"), lineage={"key": "2"})
    assert not leftover.exists()


def test_an_address_that_cannot_be_opened_says_what_to_do() -> None:
    with pytest.raises(OutsideError, match="fix: install what this address needs"):
        Store("nosuchprotocol://bucket/path")


def test_an_empty_folder_comes_back_as_one(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = store.put("empty", tmp_path / "empty", lineage={})
    assert store.fetch(made.digest, to=tmp_path / "back").is_dir()


def test_a_metric_that_is_no_number_is_never_the_best(store: Store, tmp_path: Path) -> None:
    best = Best("max", "score")
    for number, score in enumerate((float("nan"), 0.3, 0.7, float("nan"))):
        (tmp_path / "file").write_text(str(number))
        store.put("name", tmp_path / "file", lineage={}, metrics={"score": score}, best=best)
    assert store.find("name", "best").version == 3
