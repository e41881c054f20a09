"""`saccade tui` in a real pseudo-terminal: its first paint, its end, and being killed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cloud_project import environment, project
from tests.run_folders import make_run, steps_of
from tests.terminal.saccade_cli import refused, saccade

SOURCE = str(Path(__file__).parents[2] / "src")
LEAVE_ALTERNATE_SCREEN = b"\x1b[?1049l"


@dataclass
class Terminal:
    """A process on a pseudo-terminal."""

    process: subprocess.Popen[bytes]
    master: int
    seen: bytes = b""

    def until(self, word: bytes, *, within: float = 200.0) -> None:
        """Read until a word was painted."""
        end = time.monotonic() + within
        while word not in self.seen:
            assert time.monotonic() < end, (word, self.seen[-2000:])
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:  # the other end is closed
                    assert word in self.seen, self.seen[-2000:]

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())


@contextmanager
def terminal(folder: Path, *words: str, keep_cloud: bool = False) -> Iterator[Terminal]:
    """Run `saccade tui` on 80x24, with the cloud of this process or with none."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    away = () if keep_cloud else ("SACCADE_FAKE_CLOUD", "GOOGLE_CLOUD_PROJECT")
    env = {name: value for name, value in os.environ.items() if name not in away}
    env |= {"PYTHONPATH": SOURCE, "TERM": "xterm-256color", "SACCADE_HOME": str(folder / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", "tui", *words], cwd=folder, env=env,
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def content(root: Path) -> dict[str, str]:
    """Every file under a folder and the hash of its bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_it_paints_leaves_and_restores_the_terminal(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "mine", done=True)
    with terminal(tmp_path) as it:
        it.until(b"mine")
        it.type("1")
        it.until(b"monitor")
        it.seen = b""
        it.type("q")
        it.until(b"next: ")
        it.type("q")
        it.until(LEAVE_ALTERNATE_SCREEN)
        assert it.process.wait(200) == 0


def test_killed_at_any_moment_it_has_changed_nothing_and_shows_the_same_again(
    tmp_path: Path,
) -> None:
    root = tmp_path / "runs"
    make_run(root, "mine", done=True)
    make_run(root, "half", last="preempted")
    before = content(root)
    for word in (b"next: ", b"mine"):
        with terminal(tmp_path, "monitor" if word == b"mine" else "home") as it:
            it.until(word)
            it.process.send_signal(signal.SIGKILL)
            it.process.wait(200)
        assert content(root) == before
    with terminal(tmp_path, "monitor") as it:
        it.until(b"preempted")
        it.until(b"done")


def test_killed_in_the_middle_of_a_setup_it_leaves_what_the_next_one_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with project(tmp_path) as made:
        made.cloud.add_fault("^(POST|PUT|PATCH) ", status="slow", seconds=0.3, times="always")
        for name, value in environment(made.cloud, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        with terminal(tmp_path, "setup", keep_cloud=True) as it:
            it.until(b"nothing planned yet")
            it.type("p")
            it.until(b"a makes them")
            it.type("a")
            it.until(b"changes in my-project?")
            it.type("y")
            it.until("\u2714 done".encode())
            it.process.send_signal(signal.SIGKILL)
            it.process.wait(200)
        made.cloud.world.faults.clear()
        some = made.changes()
        assert some
        assert made.plan().steps, "it was killed before the last step"
        with terminal(tmp_path, "setup", keep_cloud=True) as it:
            it.until(b"nothing planned yet")
            it.type("p")
            it.until(b"a makes them")
            it.type("a")
            it.until(b"changes in my-project?")
            it.type("y")
            it.until(b"everything is made")
        assert not made.plan().steps
        made.teardown()
        assert made.left() == [], "nothing was made that is not on record"


@pytest.mark.parametrize("after", [0.2, 0.7, 1.5, 3.0])
def test_killed_at_any_moment_a_training_beside_it_goes_on(tmp_path: Path, after: float) -> None:
    root = tmp_path / "runs"
    log = make_run(root, "mine", at=time.time()) / "events.jsonl"
    with terminal(tmp_path, "monitor") as it:
        time.sleep(after)
        it.process.send_signal(signal.SIGKILL)
        it.process.wait(200)
    before = log.read_bytes()
    log.write_bytes(before + steps_of(5, total=40, at=time.time(), first=21).encode())
    values = json.loads(saccade("tui", "monitor", "--json", folder=tmp_path).out)
    assert [(row["run"], row["step"]) for row in values["rows"]] == [("mine", 25)]


def test_screens_are_written_as_json(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "mine", done=True)
    rows = json.loads(saccade("tui", "monitor", "--json", folder=tmp_path).out)["rows"]
    assert [(row["run"], row["state"], row["step"]) for row in rows] == [("mine", "DONE", 20)]


@pytest.mark.slow
@pytest.mark.parametrize("screen", ["home", "launch", "infra", "results"])
def test_every_screen_has_its_values_as_json(tmp_path: Path, screen: str) -> None:
    make_run(tmp_path / "runs", "mine", done=True)
    done = saccade("tui", screen, "--json", folder=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)


def test_without_a_terminal_it_says_so(tmp_path: Path) -> None:
    assert "needs a terminal" in refused(saccade("tui", folder=tmp_path), code=2)
    assert "no such screen" in refused(saccade("tui", "nowhere", folder=tmp_path), code=2)
