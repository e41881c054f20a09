"""Requests to stop, and numbers that are no longer numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from saccade.data.samples import Sample
from saccade.training.guards import (
    EvaluationStopped,
    StoppableSource,
    StopRequest,
    TrainingDiverged,
    check_finite,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_only_raises_the_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest().watching() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.reason == number.name
    assert signal.getsignal(number) is before


SECOND = """
import sys, time
from saccade.training.guards import StopRequest
with StopRequest().watching() as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    print("first", flush=True)
    time.sleep(60)
"""


def test_the_second_ctrl_c_leaves_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", SECOND], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for expected in (b"ready\n", b"first\n"):
        assert process.stdout.readline() == expected
        process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(timeout=50) == 143
    assert time.monotonic() - started < 40
    process.stdout.close()


class OneSample:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, position: int, /) -> Sample:
        return Sample(id=str(position), question="", answers=("",))

    def groups(self) -> list[list[int]]:
        return [[0, 1, 2]]

    def fingerprint(self) -> str:
        return "one"


def test_an_evaluation_counts_its_samples_and_stops_between_two() -> None:
    stop, reads = StopRequest(), []
    source = StoppableSource(OneSample(), stop=stop.__bool__, on_read=lambda: reads.append(1))
    assert source[1].id == "1"
    assert len(source) == 3
    assert source.groups() == [[0, 1, 2]]
    assert source.fingerprint() == "one"
    stop.reason = "SIGTERM"
    with pytest.raises(EvaluationStopped):
        source[2]
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [(float("nan"), 1.0, "loss is nan"), (float("inf"), 1.0, "loss is inf"),
     (1.0, float("nan"), "gradient norm is nan"), (1.0, float("inf"), "gradient norm is inf")],
)  # fmt: skip
def test_numbers_that_are_not_finite_stop_with_step_and_samples(
    loss: float, norm: float, what: str
) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        check_finite(step=7, loss=loss, grad_norm=norm, sample_ids=["a-1", "a-2"], good=None)
    message = str(caught.value)
    assert f"step 7: the {what}" in message
    assert "a-1, a-2" in message
    assert "no checkpoint yet" in message


def test_finite_numbers_pass() -> None:
    check_finite(step=1, loss=0.0, grad_norm=1e30, sample_ids=[], good=None)
