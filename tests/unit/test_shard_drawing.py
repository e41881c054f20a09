"""Batches drawn by another process: the same bytes, the same errors, and no one left behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from saccade.config.errors import InputError, OutsideError
from saccade.config.shards import ShardSource
from saccade.data.samples import DataError
from saccade.data.shards.drawing import draw_ahead
from saccade.data.shards.sources import open_sources
from saccade.models.shard_encoder import Pixels
from tests.toy_shards import builder, config, digests


def test_another_process_draws_what_a_thread_draws(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        summary = builder(config(tmp_path / str(number), drawers=number)).build()
        assert summary.built == 70
    assert digests(tmp_path / "0") == digests(tmp_path / "1") == digests(tmp_path / "2")
    again = builder(config(tmp_path / "1", drawers=1))
    assert again.build(rebuild=True).cache_hits == 70 and again.encoder.encoded == 0  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_what_draws_can_be_sent_for_every_kind_of_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time. " * 60)
    (tmp_path / "p" / "red").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "p" / "red" / "x.png")
    for source in (
        ShardSource(type="scenes", limit=4),
        ShardSource(type="texts", path=tmp_path / "a.txt"),
        ShardSource(type="stories", path=tmp_path / "a.txt"),
        ShardSource(type="code", path=Path(__file__)),
        ShardSource(type="images", path=tmp_path / "p"),
    ):
        mixture = open_sources(config(tmp_path, sources=[source]))
        one, other = mixture[0], pickle.loads(pickle.dumps(mixture))[0]
        assert one.id == other.id and one.draw().tobytes() == other.draw().tobytes(), source.type


def test_an_error_of_drawing_is_raised_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "p" / "red").mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 30)).save(tmp_path / "p" / "red" / f"{name}.png")
    source = ShardSource(type="images", path=tmp_path / "p")
    made = builder(config(tmp_path / "s", sources=[source], drawers=1, batch_size=1))
    (tmp_path / "p" / "red" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png"):
        made.build()
    assert not multiprocessing.active_children()


def test_a_drawer_that_is_killed_is_told_and_the_build_goes_on_later(tmp_path: Path) -> None:
    made = builder(config(tmp_path / "s", drawers=1))
    ahead = draw_ahead(made.draw, range(18), processes=1, depth=2)
    assert ahead.take().batch == 0
    (process,) = multiprocessing.active_children()
    os.kill(process.pid or 0, signal.SIGKILL)
    with pytest.raises(OutsideError, match=r"has died[\s\S]*shards\.drawers=0"):
        for _ in range(18):
            ahead.take()
            time.sleep(0.01)
    ahead.close()
    assert made.build().built == 70


def test_a_drawer_ends_when_its_builder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.toy_shards import builder, config\n"
        "from saccade.data.shards.drawing import draw_ahead\n"
        "if __name__ == '__main__':\n"
        "    made = builder(config(Path(sys.argv[1]), side=960, drawers=1))\n"
        "    ahead = draw_ahead(made.draw, range(18), processes=1, depth=8)\n"
        "    ahead.take()\n"
        "    print(ahead._all[0]._process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "main.py").write_text(code)
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "s")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        drawer = int(parent.stdout.readline())
        time.sleep(0.5)  # by now it waits to hand over more than a pipe holds
        parent.kill()
    end = time.monotonic() + 20
    while Path(f"/proc/{drawer}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{drawer}").exists()


def test_pixels_are_made_without_the_model() -> None:
    assert set(Pixels.__dataclass_fields__) == {"images", "side", "patches"}


def test_a_negative_number_of_drawers_is_refused(tmp_path: Path) -> None:
    with pytest.raises((InputError, ValueError), match="drawers"):
        config(tmp_path, drawers=-1)
