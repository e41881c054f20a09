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

from tests.run_folders import make_run
from tests.terminal.saccade_cli import refused, saccade

SOURCE = str(Path(__file__).parents[2] / "src")
LEAVE_ALTERNATE_SCREEN = b"\x1b[?1049l"


@dataclass
class Terminal:
    """A process on a pseudo-terminal."""

    process: subprocess.Popen[bytes]
    master: int
    seen: bytes = b""

    def until(self, word: bytes, *, within: float = 120.0) -> None:
        """Read until a word was painted."""
        end = time.monotonic() + within
        while word not in self.seen:
            assert time.monotonic() < end, self.seen[-2000:]
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:  # the other end is closed
                    assert word in self.seen, self.seen[-2000:]

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())


@contextmanager
def terminal(folder: Path, *words: str) -> Iterator[Terminal]:
    """Run `saccade tui` on 80x24."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {name: value for name, value in os.environ.items() if name != "SACCADE_FAKE_CLOUD"}
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
        it.type("q")
        time.sleep(0.5)
        it.type("q")
        it.until(LEAVE_ALTERNATE_SCREEN)
        assert it.process.wait(30) == 0


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
            it.process.wait(10)
        assert content(root) == before
    with terminal(tmp_path, "monitor") as it:
        it.until(b"preempted")
        it.until(b"done")


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
