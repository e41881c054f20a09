"""A toy recipe that runs the whole training machinery in a second, as a program of its own.

Generated samples (no images) flow through the real `run_training` into a real run directory; the
tests start this file as a subprocess, kill it and compare. The task: name the sum of a few digits.
The model draws dropout from the global random state, so an inexact resume shows in its losses.

    python toy_run.py FOLDER [key=value ...]
"""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from torch import Tensor, nn

from saccade.config.errors import SaccadeError
from saccade.config.resolve import Resolved, resolve
from saccade.config.schema import Config
from saccade.data.samples import DataError, Sample
from saccade.data.sources import SampleSource
from saccade.training.events import EventLog
from saccade.training.run import run_training
from saccade.training.rundir import RunDir

DIGITS, CLASSES = 6, 4
FORK_LIMIT_S = 600
"""A fork that hangs says where, in its log, and dies."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([  # what takes long to import; the rest comes with what a run does
    "saccade.training.run", "saccade.training.trainers", "saccade.training.recipes.relevance",
    "hydra", "pytest",
])  # fmt: skip
STARTING_OR_ASKING = threading.Lock()
"""Tests ask from several threads how a run ended, and only one of them may read the answer."""
SETTINGS = (
    "training.steps=30", "training.batch_size=8", "training.save_every=5", "training.threads=1",
    "training.eval_every=10", "training.eval_samples=24", "training.learning_rate=0.01",
)  # fmt: skip


class ToySource:
    """Rows of digits; rows named in `broken` raise, the digits of `poisoned` become NaN."""

    def __init__(self, size: int, *, seed: int, questions: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randint(0, 10, (size, DIGITS), generator=generator)
        self.questions = questions
        self.broken: set[int] = set()
        self.poisoned: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int, /) -> Sample:
        if position in self.broken:
            raise DataError("the row is broken", where=f"toy row {position}")
        digits = self.rows[position].tolist()
        facts = {"digits": digits, "poisoned": position in self.poisoned}
        return Sample(id=f"toy-{position}", question="", answers=(str(sum(digits)),), facts=facts)

    def groups(self) -> list[list[int]]:
        step = self.questions
        return [
            list(range(start, min(start + step, len(self)))) for start in range(0, len(self), step)
        ]

    def fingerprint(self) -> str:
        return f"toy-{len(self)}-{int(self.rows.sum())}"


class ToyModel(nn.Module):
    def __init__(self, *, width: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.body = nn.Sequential(
            nn.Linear(8 * DIGITS, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(width, CLASSES)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


class ToyRecipe:
    """Up to three supervised tokens per sample, a different number in each."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.evaluations = 0
        self.model = ToyModel(
            width=int(os.environ.get("TOY_WIDTH", "32")),
            dropout=float(os.environ.get("TOY_DROPOUT", "0.1")),
        )
        self.source = ToySource(80, seed=1)
        self.source.broken = _numbers("TOY_BROKEN")
        self.source.poisoned = _numbers("TOY_POISONED")

    def train_source(self) -> SampleSource:
        return self.source

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        digits_BL = torch.tensor([sample.facts["digits"] for sample in samples])
        labels_BT = (digits_BL.sum(1, keepdim=True) + torch.arange(3)) % CLASSES
        # uneven token counts are what a mean per micro-batch would get wrong
        labels_BT[torch.arange(3) > digits_BL[:, :1] % 3] = -100
        poison_B = torch.tensor([float(sample.facts["poisoned"]) for sample in samples])
        return {"input_ids": digits_BL, "labels": labels_BT, "poison": poison_B}

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        features = self.model.embed(batch["input_ids"]).flatten(1)
        logits_BC = self.model.head(self.model.body(features))
        logits_BTC = logits_BC[:, None].expand(-1, 3, -1)
        each = nn.functional.cross_entropy(
            logits_BTC.reshape(-1, CLASSES), batch["labels"].reshape(-1), reduction="sum"
        )
        supervised = (batch["labels"] != -100).sum()
        mutant = os.environ.get("TOY_MUTANT")
        if mutant == "micro-mean":  # what a mean per micro-batch would do
            denominator = supervised * self.config.training.accumulation
        if mutant == "rank-mean":  # what leaving out a second averaging would do
            denominator = denominator * 2
        loss = each / denominator + 0.0 / (1.0 - batch["poison"].max())
        return {"loss": loss, "token_loss": each.detach() / supervised}

    @torch.no_grad()
    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        self.model.eval()
        right, seen = 0, min(limit, len(source))
        self.evaluations += 1
        for index in range(seen):
            if index == 2 and os.environ.get("TOY_HELD_EVALUATION") == str(self.evaluations):
                wait_to_go_on()
            batch = self.collate([source[index]])
            noise = torch.rand(100_000).sort().values  # draws, and takes time to be killed in
            features = self.model.embed(batch["input_ids"]).flatten(1)
            logits_C = self.model.head(self.model.body(features))[0] + 0 * noise[0]
            right += int(logits_C.argmax() == batch["labels"][0, 0])
        return {"accuracy": right / seen}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        model = self.model
        return {
            "embed": list(model.embed.parameters()),
            "body": list(model.body.parameters()),
            "head": list(model.head.parameters()),
        }

    def finish(self, run: RunDir) -> None:
        torch.save(self.model.state_dict(), run.path / "final.pt")


def _numbers(name: str) -> set[int]:
    return {int(one) for one in os.environ.get(name, "").split(",") if one}


def toy_settings(folder: Path, overrides: Sequence[str] = ()) -> Resolved:
    """The toy's configuration for a run in `folder`."""
    place = (f"run.root={folder.parent}", f"run.name={folder.name}")
    return resolve("relevance", overrides=[*SETTINGS, *place, *overrides])


def train_toy(folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train the toy in this process."""
    return run_training(
        toy_settings(folder, overrides),
        make_recipe=ToyRecipe,
        open_eval=lambda source: ToySource(40, seed=2),
        console=Console(stderr=True),
    )


Train = Callable[[Path, Sequence[str]], Any]
"""Something that trains in a folder with overrides: the toy, or a real recipe."""


def wait_to_go_on() -> None:
    """Stand still, and say so, until the test has done what must fall into this moment."""
    Path(os.environ["TOY_HELD"]).touch()
    while not Path(os.environ["TOY_GO_ON"]).exists():
        time.sleep(0.005)


def after_each_event(then: Callable[[str, Any], None]) -> None:
    """Call with the kind and the step of every event once it is in the log."""
    append = EventLog.append

    def append_and_call(self: EventLog, type: str, **fields: Any) -> None:
        append(self, type, **fields)
        then(type, fields.get("step"))

    EventLog.append = append_and_call  # in a fork that ends with its run


def hold_after(kind: str, step: int) -> None:
    """Let the run stand still once this event of this step is in its log."""
    after_each_event(lambda type, at: wait_to_go_on() if (type, at) == (kind, step) else None)


def main(folder: Path, overrides: Sequence[str], train: Train = train_toy) -> int:
    """Train, and return the exit code that the command line would."""
    try:
        train(folder, overrides)
    except SaccadeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def be_a_run(
    work: bytes, env: Mapping[str, str], log: Path, hold: tuple[str, int] | None
) -> NoReturn:
    """Train in this process, a fork, and end it."""
    os.environ.clear()
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # its workers start as everybody's do
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    faulthandler.dump_traceback_later(FORK_LIMIT_S, exit=True, file=sys.stderr)
    if hold and hold[0] == "evaluation":
        os.environ["TOY_HELD_EVALUATION"] = str(hold[1])
    elif hold:
        hold_after(*hold)
    folder, overrides, train = pickle.loads(work)  # here, where the log has what goes wrong
    code = main(folder, overrides, train)
    sys.stderr.flush()
    os._exit(code)  # a thread or a process that the run left must not hold up its end


@atexit.register
def kill_what_still_runs() -> None:
    """Runs of a test that failed, which the end of pytest would wait for."""
    for process in multiprocessing.active_children():
        process.kill()


class ForkedRun:
    """The same in a fork: real signals and real deaths without a new import.

    What is forked is a process that has only imported modules, not the tests' own, in which earlier
    tests leave threads. They do not exist in a fork, and whoever joins one of them there (a gloo
    group that is collected does) may find another thread in its place, and the fork is aborted with
    `std::system_error: Invalid argument`. So `train` and what is bound to it must be picklable, and
    nothing that a test changed in its own process but the environment is seen by the run.

    With `hold` (a type of event and a step) the run stands still after that event, or in the
    evaluation of that number, so that what a test does next cannot come too late.
    """

    def __init__(
        self,
        folder: Path,
        overrides: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        train: Train = train_toy,
        hold: tuple[str, int] | None = None,
    ) -> None:
        self.log = log or folder.with_suffix(".log")
        self.code: int | None = None
        self.held, self.on = self.log.with_suffix(".held"), self.log.with_suffix(".on")
        for file in (self.held, self.on):
            file.unlink(missing_ok=True)
        moments = {"TOY_HELD": str(self.held), "TOY_GO_ON": str(self.on)}
        all_env = {**os.environ, **(env or {}), **moments}
        work = pickle.dumps((folder, overrides, train))
        self.process = FORKS.Process(target=be_a_run, args=(work, all_env, self.log, hold))
        with STARTING_OR_ASKING:
            self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        if self.code is None:
            with STARTING_OR_ASKING:
                self.code = self.process.exitcode
        return self.code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, sig)

    def go_on(self) -> None:
        """Let a run that was held continue."""
        self.on.touch()

    def output(self) -> str:
        return self.log.read_text("utf-8")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
