"""The whole way in a terminal: nothing, setup, launch, two preemptions, DONE, report, teardown.

tmux is the terminal, the fake cloud is the cloud, the training is a real one of seconds; nothing is
typed outside the interface but the two preemptions. With WALK_CAPTURES=FOLDER every screen on the
way is written there, to be looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from saccade.launch.log import Launch
from saccade.launch.view import LaunchView

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
SOURCE = str(Path(__file__).parents[2] / "src")
CONFIG = """recipe: smoke/relevance
run:
  name: walk
  heartbeat_seconds: 0.5
launch:
  target: fake
  backoff_seconds: 0
training:
  steps: 80
  save_every: 4
"""


def places(folder: Path) -> dict[str, str]:
    """Variables that keep a session, its record and its cloud inside a folder."""
    return {
        "PYTHONPATH": SOURCE, "SACCADE_HOME": f"{folder}/home", "OMP_NUM_THREADS": "1",
        "SACCADE_FAKE_STATE": f"{folder}/fake-cloud",
    }  # fmt: skip


@dataclass
class Terminal:
    """A program in tmux."""

    folder: Path
    size: tuple[int, int]
    keep: Path
    seen: list[str] = field(default_factory=list)

    def tmux(self, *words: str) -> str:
        """Call tmux on a server of our own."""
        done = subprocess.run(
            ["tmux", "-S", str(self.folder / "tmux"), *words], capture_output=True, text=True,
            check=False, env={**os.environ, "TMUX": ""},
        )  # fmt: skip
        return done.stdout

    def start(self, *words: str) -> None:
        """Run saccade in it."""
        unset = ("GOOGLE_CLOUD_PROJECT", "SACCADE_FAKE_CLOUD", "WANDB_API_KEY", "DISPLAY")
        env = [f"{name}={value}" for name, value in places(self.folder).items()]
        command = ["env", *(f"--unset={name}" for name in unset), *env,
                   sys.executable, "-m", "saccade.cli", *words]  # fmt: skip
        width, height = map(str, self.size)
        self.tmux("-f", os.devnull, "new-session", "-d", "-x", width, "-y", height,
                  "-c", str(self.folder), *command)  # fmt: skip

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, as tmux names them."""
        for key in keys:
            self.tmux("send-keys", key)
            time.sleep(0.15)

    def type(self, text: str) -> None:
        """Type letters."""
        self.tmux("send-keys", "-l", text)

    def text(self) -> str:
        """What stands on the screen."""
        return self.tmux("capture-pane", "-p")

    def until(self, *words: str, within: float = 300.0) -> str:
        """Wait until all words stand there, and keep the capture."""
        end = time.monotonic() + within
        while not all(word in (text := self.text()) for word in words):
            assert time.monotonic() < end, f"waited for {words}:\n{text}"
            time.sleep(0.1)
        time.sleep(0.4)  # let what belongs to it be painted too
        text = self.text()
        self.seen.append(text)
        (self.keep / f"{len(self.seen):02d}.txt").write_text(text, encoding="utf-8")
        return text


@pytest.fixture(params=[(80, 24), (200, 60)], ids=lambda size: f"{size[0]}x{size[1]}")
def walk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """A terminal in an empty folder."""
    size: tuple[int, int] = request.param
    keep = Path(os.environ.get("WALK_CAPTURES", tmp_path / "captures")) / f"{size[0]}x{size[1]}"
    keep.mkdir(parents=True, exist_ok=True)
    it = Terminal(tmp_path, size, keep)
    try:
        yield it
    finally:
        it.tmux("kill-server")
        subprocess.run(
            [sys.executable, "-m", "saccade.cli", "cloud", "fake", "--stop"],
            env=os.environ | places(tmp_path), capture_output=True, check=False,
        )  # fmt: skip


def logged(folder: Path, reached: Callable[[LaunchView], bool], *, within: float = 300) -> Launch:
    """Wait until the log of the only launch says something."""
    end = time.monotonic() + within
    while True:
        found = list((folder / "runs" / ".launches").glob("*/events.jsonl"))
        if found and reached(Launch(found[0].parent).view()):
            return Launch(found[0].parent)
        assert time.monotonic() < end, found and Launch(found[0].parent).view()
        time.sleep(0.2)


def take_machine(folder: Path, launch: Launch) -> None:
    """Let the fake cloud take the machine of the present attempt."""
    server = json.loads((folder / "fake-cloud" / "server.json").read_text())
    handle = launch.view().handle
    assert handle is not None
    job = handle.id.rpartition("/")[2]
    url = f"http://127.0.0.1:{server['port']}/fake/jobs/{job}/preempt"
    urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"), timeout=30)


def saved(attempt: int, *, after: int) -> Callable[[LaunchView], bool]:
    """An attempt has a checkpoint beyond a step."""

    def reached(view: LaunchView) -> bool:
        mark = view.mark
        return view.attempt == attempt and mark is not None and mark.step > after

    return reached


def test_from_nothing_to_a_report_and_back_without_leaving(walk: Terminal) -> None:
    (walk.folder / "walk.yaml").write_text(CONFIG)
    walk.start("tui", "--fake")
    walk.until("next:", "no runs yet: 2 trains something", "fake-project (fake)")

    walk.press("3")
    walk.until("saccade setup", "check", "project")
    walk.press("p")
    walk.until("change(s)", "a makes them")
    walk.press("a")
    walk.until("changes in fake-project?")
    walk.press("y")
    walk.until("everything is made")

    walk.press("2")
    walk.until("training.steps")
    walk.press("Enter", "C-u")
    walk.type("walk.yaml")
    walk.until("recipe = ", "walk.yaml")
    walk.press("Enter")
    walk.until("saccade launch walk.yaml", "smoke/relevance")
    walk.press("p")
    walk.until("x: launch walk", "us-central1")
    walk.press("x")
    walk.until("limits: 5 attempts")
    walk.press("y")
    walk.until("saccade monitor", "walk")

    launch = logged(walk.folder, saved(1, after=3))
    walk.until("running")
    take_machine(walk.folder, launch)
    walk.until("\u21af1")
    walk.press("Enter")
    walk.until("saccade run walk", "2/5 \u21af1")
    logged(walk.folder, saved(2, after=launch.view().safe_step or 0))
    take_machine(walk.folder, launch)
    walk.until("\u21af2")
    walk.press("v")
    walk.until("preempted", "attempt 3 in")
    walk.press("l", "p")
    walk.until("attempt 2 of 3", "saved")
    walk.press("p")
    walk.until("attempt 1 of 3", "saved")
    walk.press("q")
    walk.until("saccade monitor", "\u21af2")
    walk.until("succeeded")
    view = launch.view()
    assert (view.attempt, view.preemptions) == (3, 2)

    walk.press("h")
    walk.until("Bring walk here?")
    walk.press("y")
    walk.until("done: fetch walk")
    walk.press("6")
    walk.until("saccade results", "walk")
    walk.press("b")
    walk.until("Write the report of walk?")
    walk.press("y")
    walk.until("done: report walk", within=900)
    assert (walk.folder / "runs" / "walk" / "report.html").is_file()
    walk.press("o")
    walk.until("report.html")

    walk.press("7")
    walk.until("with 1 finished run(s); D deletes")
    walk.press("D")
    text = walk.until("holds 1 finished", "walk", "to go on")
    walk.type(text.partition("type ")[2].split()[0])
    walk.press("Enter")
    walk.until("nothing of saccade's is left")
    walk.press("0")
    walk.until("saccade home", "done")
    walk.press("q")
    end = time.monotonic() + 60
    while walk.tmux("list-sessions"):
        assert time.monotonic() < end
        time.sleep(0.2)
