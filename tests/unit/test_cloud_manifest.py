"""The record of created resources: intent first, crash-safe, never silently wrong."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from saccade.cloud.manifest import DELETING, DONE, INTENT, Manifest
from saccade.config.errors import OutsideError


def recorded(path: Path, *ids: str) -> Manifest:
    manifest = Manifest(path)
    for id_ in ids:
        manifest.intend(id_, kind="bucket", name=id_, region="us-central1", what="a bucket")
    return manifest


def test_an_absent_file_is_an_empty_record(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "deep" / "one.json")
    assert manifest.entries() == {}
    assert manifest.last_error() is None


def test_intent_becomes_done_becomes_deleting_becomes_gone(tmp_path: Path) -> None:
    manifest = recorded(tmp_path / "one.json", "b")
    assert manifest.entries()["b"].state == INTENT
    assert not manifest.entries()["b"].certain
    manifest.mark("b", DONE)
    assert manifest.entries()["b"].certain
    manifest.intend("b", kind="bucket", name="b", region="", what="again")
    assert manifest.entries()["b"].state == DONE
    manifest.mark("b", DELETING)
    manifest.intend("b", kind="bucket", name="b", region="", what="made anew")
    assert manifest.entries()["b"].state == INTENT
    manifest.forget("b")
    assert manifest.entries() == {}


def test_the_last_error_stays_until_a_clean_pass(tmp_path: Path) -> None:
    manifest = recorded(tmp_path / "one.json")
    manifest.failed("bucket:b", "refused")
    error = Manifest(tmp_path / "one.json").last_error()
    assert error is not None
    assert (error["step"], error["message"]) == ("bucket:b", "refused")
    manifest.succeeded()
    assert manifest.last_error() is None


@pytest.mark.parametrize("text", ["{", "[]", '{"v": 9}', '{"v": 1, "entries": {"a": {"x": 1}}}'])
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(OutsideError, match=r"fix: mv .*one\.json"):
        Manifest(path).entries()
    with pytest.raises(OutsideError):
        recorded(path, "b")
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutsideError, match="SACCADE_HOME"):
        recorded(tmp_path / "file" / "cloud" / "one.json", "b")


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    names = [f"b{number}" for number in range(12)]
    threads = [threading.Thread(target=recorded, args=(path, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Manifest(path).entries()) == set(names)
    assert not list(tmp_path.glob("*.tmp"))
