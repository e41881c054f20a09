"""The heartbeat says what the loop shows, from a thread that knows nothing of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saccade.training.heartbeat import FILE, Heartbeat
from saccade.training.mirror import Uploaded
from saccade.training.progress import Progress
from saccade.training.store import StoreError, open_store
from tests.waiting import until


def beating(folder: Path, **settings: Any) -> tuple[Progress, Heartbeat]:
    progress = Progress(steps=10)
    defaults: dict[str, Any] = {"run": "run-a", "folder": folder, "every_s": 0.02, "env": {}}
    return progress, Heartbeat(progress, **(defaults | settings))


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FILE).read_text())


def test_it_beats_at_once_and_goes_on_without_the_loop(tmp_path: Path) -> None:
    progress, heart = beating(tmp_path, env={"SACCADE_ATTEMPT": "3"})
    heart.start()
    until((tmp_path / FILE).is_file)
    assert read(tmp_path)["phase"] == "starting"
    progress.begin("training")
    progress.stepped(4, loss=0.5, seconds=2.0, samples=8, tokens=100)
    until(lambda: read(tmp_path)["step"] == 4)
    first = read(tmp_path)
    until(lambda: read(tmp_path)["time"] > first["time"])  # no step in between
    beat = read(tmp_path)
    assert (beat["attempt"], beat["steps"], beat["loss"]) == (3, 10, 0.5)
    assert beat["samples_per_second"] == 4.0
    assert beat["stepped_at"] == first["stepped_at"] <= beat["time"]
    assert beat["last_checkpoint"] is None
    heart.close("preempted")
    assert read(tmp_path)["phase"] == "preempted"


def test_it_names_the_newest_checkpoint_in_the_store(tmp_path: Path) -> None:
    done = Uploaded(step=4, bytes=10, sha256="ab", seconds=0.1, at=17.0)
    store = open_store(str(tmp_path / "store"))
    _, heart = beating(
        tmp_path, last_upload=lambda: done, store=store, home="runs/run-a", every_s=60
    )
    heart.start()
    heart.close("done")
    content = store.read(f"runs/run-a/{FILE}")
    assert content is not None
    beat = json.loads(content)
    assert beat == read(tmp_path)
    assert beat["last_checkpoint"] == {
        "step": 4, "bytes": 10, "sha256": "ab", "uploaded_at": 17.0,
    }  # fmt: skip
    assert beat["phase"] == "done"


def test_a_store_that_is_away_stops_nothing(tmp_path: Path) -> None:
    class Away:
        tries = 0

        def write(self, name: str, data: bytes, *, replaces: int | None = None) -> Any:
            Away.tries += 1
            raise StoreError("away")

    away: Any = Away()
    _, heart = beating(tmp_path, store=away)
    heart.start()
    until(lambda: Away.tries > 2)
    heart.close("done")
    assert read(tmp_path)["phase"] == "done"


def test_zero_seconds_means_none(tmp_path: Path) -> None:
    _, heart = beating(tmp_path, every_s=0)
    heart.start()
    heart.close("done")
    assert not (tmp_path / FILE).exists()
