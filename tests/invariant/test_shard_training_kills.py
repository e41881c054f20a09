"""A training and the builder whose shards it follows, killed apart and together, end unbroken.

The recipe `recursion` trains on shards while they are built. Real processes and real signals: the
shards and the final checkpoint of the killed pair equal those of the unbroken one byte for byte,
losses, measurements and ledger line for line; and the ledger shows each sample once per epoch. Many
kills hit forks, some the command line, whose builder is its child.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from toy_run import ForkedRun, after_each_event

from saccade.config.resolve import resolve
from saccade.config.shards import EncodedSource
from saccade.data.shards.manifest import read_manifest
from saccade.data.shards.puzzles import EncodedPuzzles
from saccade.training.batches import order_of
from saccade.training.events import read_events, step_series
from saccade.training.run import train
from tests.toy_shards import builder, config, digests

ROOT = Path(__file__).resolve().parents[2]
SLOTS = 4
SMALL = (
    "arch=multimodal", "recursion.width=16", "recursion.heads=2", "recursion.ffn_multiple=16",
    "recursion.max_steps=3", "recursion.eval_steps=3", "recursion.explore=0.5",
    f"training.batch_size={SLOTS}", "training.threads=1", "training.log_every=1",
    "training.save_every=5", "training.eval_samples=4", "model.device=cpu", "tracking.wandb=off",
)  # fmt: skip
PATIENCE_SECONDS = 120.0
KINDS = ("builder", "trainer", "both", "trainer")


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kills", ROOT / "benchmarks" / "kills.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def stand_still_from(step: int, *, until: Path) -> None:
    """Rest after each step from this one on, until a file is there or somebody asks to stop.

    So a training that is killed again and again does not end before it was killed often enough,
    however slow its killer is.
    """

    def rest(kind: str, at: Any) -> None:
        if kind != "step" or at < step:
            return
        asked: list[int] = []
        before = signal.getsignal(signal.SIGTERM)
        assert callable(before)

        def note(number: int, frame: Any) -> None:
            asked.append(number)
            before(number, frame)

        signal.signal(signal.SIGTERM, note)
        while not asked and not until.exists():
            time.sleep(0.005)
        signal.signal(signal.SIGTERM, before)

    after_each_event(rest)


def build_slowly(batch_seconds: float, folder: Path, overrides: Sequence[str]) -> None:
    torch.set_num_threads(1)
    settings = config(folder, target_tokens=16, input_tokens=16)
    builder(settings, pause_s=batch_seconds).build()


def train_beside(
    folder: Path, overrides: Sequence[str], *, rests_from: int | None, until: Path
) -> Any:
    place = [f"run.root={folder.parent}", f"run.name={folder.name}"]
    if rests_from is not None:
        stand_still_from(rests_from, until=until)
    words = [*SMALL, *place, "training.eval_every=20", *overrides]
    return train(resolve("recursion", overrides=words))


class Forks:
    """A builder with a toy encoder and a training beside it, as two forks."""

    waits_in_vain = False

    def __init__(
        self, folder: Path, *, steps: int, batch_seconds: float, held_for: int = 0
    ) -> None:
        """With `held_for` training stands still for each of its last steps, as many of them."""
        self.shards, self.run = folder / "shards", folder / "run"
        self.steps, self.batch_seconds = steps, batch_seconds
        self.last_goal = steps - 1 - held_for
        self.go_on = folder / "go-on"
        self.sides: dict[str, ForkedRun] = {}
        folder.mkdir()

    def start(self) -> None:
        """Start whatever is not alive and not finished."""
        data = [f"data.{split}.path={self.shards}" for split in ("train", "eval")]
        words = [*data, f"training.steps={self.steps}"]
        rests = self.last_goal if self.last_goal < self.steps - 1 else None
        trains = partial(train_beside, rests_from=rests, until=self.go_on)
        builds = partial(build_slowly, self.batch_seconds)
        work = {"builder": (self.shards, [], builds), "trainer": (self.run, words, trains)}
        for side, (folder, overrides, does) in work.items():
            if not self.alive(side) and not self.finished(side):
                self.sides[side] = ForkedRun(folder, overrides, train=does)

    def alive(self, side: str) -> bool:
        return side in self.sides and self.sides[side].poll() is None

    def finished(self, side: str) -> bool:
        return side in self.sides and self.sides[side].poll() == 0

    def kill(self, side: str, number: signal.Signals) -> bool:
        """Whether it was alive; waits for its death."""
        if not self.alive(side):
            return False
        self.sides[side].send_signal(number)
        return self.sides[side].wait() != 0

    def finish(self) -> None:
        """Let both come to their end."""
        self.go_on.touch()
        self.start()
        for side in self.sides.values():
            assert side.wait() == 0, side.output()


class Command:
    """`saccade data build shards recursion`: the training, and the builder as its child."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        self.folder, self.shards, self.run = folder, folder / "shards", folder / "run"
        self.steps, self.last_goal = steps, steps - 1
        self.process: subprocess.Popen[bytes] | None = None
        self.waits_in_vain = False
        """Its builder was killed, so the training gets no further."""
        folder.mkdir()

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.waits_in_vain = False
        words = [
            "data", "build", "shards", "recursion", *SMALL,
            "shards.sources=[{type: scenes, limit: 160}]", "shards.side=96",
            "shards.batch_size=4", "shards.batches_per_shard=5", "shards.target_tokens=16",
            f"training.steps={self.steps}", "training.eval_every=50", f"run.root={self.folder}",
            "run.name=run",
        ]  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "saccade.cli", *words]
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log
            )

    def _pid(self, side: str) -> int | None:
        assert self.process is not None
        if self.process.poll() is not None:
            return None
        if side == "trainer":
            return self.process.pid
        told = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in told.split():
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and b"saccade.pipeline.shards" in command.read_bytes():
                return int(pid)
        return None

    def alive(self, side: str) -> bool:
        return self._pid(side) is not None

    def kill(self, side: str, number: signal.Signals) -> bool:
        pid = self._pid(side)
        if pid is None:
            return False
        os.kill(pid, number)
        if side == "trainer":
            assert self.process is not None
            assert self.process.wait() in (-number, 143, 0), (self.folder / "log").read_text()
        self.waits_in_vain = side == "builder" and not is_finished(self.shards)
        return True

    def finish(self) -> None:
        """Wait for what runs, whatever it ends with, and run the command to its end."""
        if self.process is not None:
            self.process.wait()
        self.start()
        assert self.process is not None
        assert self.process.wait() == 0, (self.folder / "log").read_text()


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)


def built(folder: Path) -> int:
    found = read_manifest(folder)
    return found.built if found is not None else 0


def torment(
    pair: Forks | Command, harness: ModuleType, *, kills: int, chance: random.Random
) -> Counter[str]:
    """Kill one side or both, so often; returns how often each kind landed."""
    landed: Counter[str] = Counter()
    for kind in itertools.islice(itertools.cycle(KINDS), 10 * kills):
        if landed.total() >= kills:
            return landed
        if kind != "trainer" and is_finished(pair.shards):
            kind = "trainer"
        pair.start()
        now = harness.last_of(pair.run, "checkpoint")
        room = max(1, (pair.steps - now) // (kills - landed.total() + 1))
        goal_steps = min(pair.last_goal, now + chance.randint(1, 2 * room))
        goal_built = built(pair.shards) + chance.choice([0, 4, 8])

        def reached(
            kind: str = kind, goal_steps: int = goal_steps, goal_built: int = goal_built
        ) -> bool:
            if pair.waits_in_vain or not pair.alive("trainer"):
                return True
            if kind == "trainer":
                return harness.last_of(pair.run, "step") >= goal_steps
            return built(pair.shards) >= goal_built

        wait_for(reached, seconds=PATIENCE_SECONDS)
        time.sleep(chance.uniform(0.0, 0.1))
        for side in chance.sample(["builder", "trainer"], k=2):
            number = chance.choice([signal.SIGKILL, signal.SIGTERM])
            if kind in (side, "both") and pair.kill(side, number):
                landed[kind] += 1
    raise AssertionError(f"all was done before it could be killed {kills} times: {landed}")


def is_finished(folder: Path) -> bool:
    found = read_manifest(folder)
    return found is not None and found.complete


def check_ledger(run: Path, shards: Path) -> None:
    """Slot g of G took the positions g, g + G, ... of the stream, none twice, none left out."""
    taken = torch.load(run / "checkpoints" / last_checkpoint(run) / "carry.pt")["taken"].tolist()
    source = EncodedPuzzles(EncodedSource(type="shards", path=shards))
    ids, size = [source[i].id for i in range(len(source))], len(source)
    order = order_of(source, seed=0)
    places = [slot + SLOTS * i for slot, count in enumerate(taken) for i in range(count)]
    ledger = [
        one for event in step_series(read_events(run / "events.jsonl"))
        for one in event["sample_ids"]
    ]  # fmt: skip
    assert len(set(ids)) == size
    assert Counter(ledger) == Counter(ids[order.take(place, 1)[0]] for place in places)
    assert set(range(size)) <= set(places), "not one whole epoch was trained"


def last_checkpoint(run: Path) -> str:
    return max((run / "checkpoints").glob("step-*"), key=lambda one: int(one.name[5:])).name


def check_equal(whole: Forks | Command, killed: Forks | Command, harness: ModuleType) -> None:
    assert digests(killed.shards) == digests(whole.shards)
    compared = harness.compare_runs(whole.run, killed.run)
    assert compared.differences == ()
    assert {"losses", "sample order", "final checkpoint"} <= set(compared.compared)
    check_ledger(whole.run, whole.shards)
    check_ledger(killed.run, killed.shards)


@pytest.mark.parametrize("seed", [0, 1])
def test_four_kills_of_training_and_builder_change_nothing(
    harness: ModuleType, tmp_path: Path, seed: int
) -> None:
    whole = Forks(tmp_path / "whole", steps=60, batch_seconds=0.02)
    killed = Forks(tmp_path / "killed", steps=60, batch_seconds=0.3, held_for=8)
    whole.finish()
    landed = torment(killed, harness, kills=4, chance=random.Random(seed))
    killed.finish()
    assert landed["trainer"] and landed["builder"] + landed["both"]
    check_equal(whole, killed, harness)


@pytest.mark.slow
def test_twenty_kills_of_training_and_builder_change_nothing(
    harness: ModuleType, tmp_path: Path
) -> None:
    whole = Forks(tmp_path / "whole", steps=120, batch_seconds=0.02)
    killed = Forks(tmp_path / "killed", steps=120, batch_seconds=1.0, held_for=30)
    whole.finish()
    landed = torment(killed, harness, kills=20, chance=random.Random(2026))
    killed.finish()
    assert landed.total() >= 20 and min(landed[kind] for kind in set(KINDS)) > 0, landed
    check_equal(whole, killed, harness)


@pytest.mark.slow
def test_kills_of_the_command_and_of_its_builder_change_nothing(
    harness: ModuleType, tmp_path: Path
) -> None:
    whole = Command(tmp_path / "whole", steps=120)
    whole.finish()
    killed = Command(tmp_path / "killed", steps=120)
    landed = torment(killed, harness, kills=6, chance=random.Random(2026))
    killed.finish()
    assert landed.total() >= 6 and landed["trainer"], landed
    check_equal(whole, killed, harness)
