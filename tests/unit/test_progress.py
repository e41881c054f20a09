"""What a person sees while a run works, on a terminal and in a log file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from saccade.training.progress import Progress, duration, shown
from saccade.training.threads import choose_threads, idle_cores
from tests.waiting import until


def halfway() -> Progress:
    progress = Progress(steps=100)
    progress.begin("training")
    progress.stepped(50, loss=0.25, seconds=2.0, samples=16, tokens=4000)
    return progress


def test_the_line_says_where_the_run_is_and_how_long_it_takes() -> None:
    progress = halfway()
    progress.saved()
    line = progress.line()
    for part in ("step 50/100", "loss 0.2500", "ETA 1m40s", "8.0 samples/s", "2000 tokens/s"):
        assert part in line
    assert "saved 0s ago" in line
    assert line.endswith("training")


def test_an_evaluation_counts_its_samples() -> None:
    progress = halfway()
    progress.begin("evaluating", total=128)
    progress.advance()
    assert progress.line().endswith("evaluating 1/128")


def test_a_log_file_gets_a_line_again_and_again_even_when_nothing_happens() -> None:
    out = io.StringIO()
    with shown(halfway(), Console(file=out, width=40), every_s=0.05):
        until(lambda: out.getvalue().count("\n") >= 4)
    lines = out.getvalue().splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("step 50/100 | loss 0.2500") for line in lines)
    assert "\x1b" not in out.getvalue()


def test_a_new_phase_is_shown_without_waiting_for_the_next_line() -> None:
    out, progress = io.StringIO(), halfway()
    with shown(progress, Console(file=out), every_s=60):
        until(lambda: "training" in out.getvalue())
        progress.begin("saving")
        until(lambda: "saving" in out.getvalue())
    assert [line.rsplit("| ", 1)[1] for line in out.getvalue().splitlines()] == [
        "training",
        "saving",
    ]


def test_a_terminal_gets_one_live_line() -> None:
    out = io.StringIO()
    with shown(halfway(), Console(file=out, force_terminal=True, width=120)):
        until(lambda: "step 50/100" in out.getvalue())
    assert "step 50/100" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (42, "42s"), (190, "3m10s"), (7500, "2h05m")]
)
def test_durations_read_like_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_threads_are_the_idle_cores_and_at_least_one() -> None:
    assert idle_cores(load=0.1, cores=4) == 4
    assert idle_cores(load=1.2, cores=2) == 1
    assert idle_cores(load=64.0, cores=2) == 1


def test_a_setting_wins_and_a_resumed_run_keeps_its_number() -> None:
    assert choose_threads(3, earlier=8) == 3
    assert choose_threads(0, earlier=8) == 8
    assert choose_threads(0, earlier=None) >= 1


def test_omp_num_threads_caps_the_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_threads(0, earlier=None) == 1
