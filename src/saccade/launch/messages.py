"""What a person reads about a launch: one sentence per event, and names for known failures.

Numbers and views flow in, sentences flow out. Everything a launch says about preemption, waiting,
cost and failure is worded here once, so that the live line, the log and `--json` agree. Left out:
when each is said (`supervise.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saccade.launch.states import State
from saccade.launch.view import LaunchView, Offer

TAIL_LINES = 50
"""Lines of a job's log that are shown when it ended before its first heartbeat."""
CAPACITY_ADVICE = (
    "launch.strategy=flex-start (queues until there is a machine), more launch.regions, or a"
    " longer launch.wait_minutes"
)


@dataclass(frozen=True)
class Cause:
    """Why a job ended, and the one thing to change."""

    name: str
    advice: str
    exit_code: int


_SIGNATURES: tuple[tuple[str, Cause], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        Cause(
            "out of GPU memory",
            "training.gradient_checkpointing=true, or half of training.batch_size with twice"
            " training.accumulation",
            3,
        ),
    ),
    (
        r"No space left on device|disk is full|ENOSPC",
        Cause("disk full", "launch.disk_gb=200 (twice the present size)", 3),
    ),
    (
        r"the loss is (nan|inf|-inf)|gradient norm is (nan|inf)|TrainingDiverged",
        Cause("the loss diverged (NaN)", "a third of training.learning_rate", 1),
    ),
    (
        r"ErrImagePull|ImagePullBackOff|failed to pull|manifest unknown|image .{0,200}not found",
        Cause("the image cannot be pulled", "saccade cloud setup --only registry", 3),
    ),
    (
        r"GPU(\(s\)|s)? (were|was) asked for|no CUDA device|CUDA driver|nvidia-smi",
        Cause("no GPU in the machine", "another machine type in launch.machine", 3),
    ),
)
_CAPACITY = re.compile(
    r"stockout|insufficient|not enough resources|no capacity|resource pool", re.I
)


def cause_of(tail: Sequence[str], *, detail: str, code: int | None) -> Cause | None:
    """Name a known failure by the end of its log, its error text and its exit code."""
    text = "\n".join([*tail, detail])
    for pattern, cause in _SIGNATURES:
        if re.search(pattern, text, re.I):
            return cause
    if re.search(r"timeout|timed out|deadline exceeded", detail, re.I):
        return Cause(
            "the time limit of the job was reached",
            "a larger launch.timeout_hours; `saccade launch` again continues from the checkpoint",
            143,
        )
    if code == 137:
        return Cause(
            "out of memory (killed by the system)",
            "training.workers=0, or a machine with more memory in launch.machine",
            3,
        )
    return None


def is_capacity(detail: str) -> bool:
    """Tell whether an error text says that the region has no such machine free."""
    return bool(_CAPACITY.search(detail))


def money(usd: float | None) -> str:
    """Dollars, or that they are not known."""
    if usd is None:
        return "unknown cost"
    return f"${usd:.4f}" if 0 < usd < 0.01 else f"${usd:.2f}"


def span(seconds: float) -> str:
    """A duration as people say it: 42 s, 3 min, 2.5 h, 3 days."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def place(offer: Offer | None) -> str:
    """Machine, strategy and region."""
    if offer is None:
        return "nowhere"
    if offer.region == "local":
        return "this machine"
    return f"{offer.machine} {offer.strategy} in {offer.region}"


def preempted(
    view: LaunchView, *, now: float, lost_steps: int, lost_usd: float | None, next_attempt: int
) -> str:
    """The line about a preemption: step, checkpoint, what is lost, which attempt follows."""
    step = view.beat.step if view.beat else 0
    if view.mark is None:
        safe = "no checkpoint yet"
    else:
        age = f" ({span(now - view.mark.at)} ago)" if view.mark.at else ""
        safe = f"last checkpoint {view.mark.step}{age}"
    price = f" about {money(lost_usd)}" if lost_usd is not None else ""
    attempt = f"attempt {next_attempt}/{view.policy.max_attempts}"
    return f"preempted at step {step}, {safe}, lost {lost_steps} steps{price}, {attempt}"


def loop(view: LaunchView, *, cheaper: Sequence[Offer] = ()) -> str:
    """The end of a launch that is preempted again and again without getting further."""
    here = view.here
    text = (
        f"preempted {view.stuck} times without a new checkpoint; stopped before it costs more"
        "\n  fix: launch.strategy=flex-start or launch.strategy=on-demand (not preempted), or a"
        " smaller training.save_every"
    )
    for offer in cheaper:
        if offer.usd_per_hour is None or here is None or here.usd_per_hour is None:
            continue
        more = offer.usd_per_hour - here.usd_per_hour
        text += f"\n  {place(offer)}: {money(offer.usd_per_hour)}/h ({money(abs(more))}/h "
        text += "more)" if more >= 0 else "less)"
    return text


def early_death(*, code: int | None, detail: str, tail: Sequence[str]) -> str:
    """The end of a job that never sent a heartbeat, with the end of its log."""
    how = f"exit code {code}" if code is not None else (detail or "no exit code")
    lines = "".join(f"\n  | {line}" for line in list(tail)[-TAIL_LINES:])
    said = f": {detail}" if detail and code is not None else ""
    return f"FAILED at STARTING ({how}{said}); the last lines of its log:{lines or ' none'}"


def incomplete(view: LaunchView, *, why: str) -> str:
    """The end of a job that its platform calls done, without DONE in the store."""
    step = f"step {view.beat.step}" if view.beat else "no step seen"
    safe = f"checkpoint {view.mark.step}" if view.mark else "no checkpoint"
    return (
        f"INCOMPLETE: the job ended without an error, but DONE is not in the store ({step}, {safe})"
        f"; {why}\n  fix: `saccade launch` again with the same words continues it"
    )


def nobody(run: str) -> str:
    """What is said of a launch that has a job and no watcher."""
    return f"nobody is watching; run `saccade watch {run}`"


def bring_home(view: LaunchView, *, root: Path, fake: str = "") -> str:
    """The command that brings a finished run to this machine; empty when it is here.

    `root` is the folder of runs; `fake` is the address of the imitation of Google Cloud, where the
    shell does not know it.
    """
    store = view.spec.store if view.spec else ""
    if view.state is not State.SUCCEEDED or view.target == "local" or not store:
        return ""
    homes = [Path(one) for one in (view.run_dir, view.home) if one]
    if any((home / "DONE").is_file() for home in homes):
        return ""
    if store.startswith("hf://"):
        return f"{view.key}: finished; bring it here: hf buckets sync {store}/runs/{view.run}/final"
    before = f"SACCADE_FAKE_CLOUD={fake} " if fake else ""
    folder = "" if str(root) == "runs" else f" --root {root}"
    return (
        f"{view.key}: the finished run is in {store}; bring it here:"
        f" {before}saccade fetch {view.run}{folder}"
    )
