"""Whether written code passes its tests, HumanEval's way, and pass@k over several attempts.

A problem (prompt, tests, name of the function) and a completion flow in; a verdict flows out. The
program is what HumanEval's authors run: prompt and completion, the tests, and the call of `check`.
It runs in `sandbox.py` and nowhere else. Formula (Chen et al. 2021, arXiv 2107.03374, eq. 1), with
n attempts at a problem of which c pass, averaged over problems:

    pass@k = 1 - C(n - c, k) / C(n, k)

which is the chance that k attempts drawn without putting back hold a right one. It is not defined
for k > n and left out there. Left out: files (`evaluation/coding.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saccade.scoring.sandbox import Limits, Ran, run_sandboxed


@dataclass(frozen=True)
class Problem:
    """A function to write: what is given of it, and what it must pass."""

    task: str
    prompt: str
    test: str
    entry_point: str


def program_of(problem: Problem, completion: str) -> str:
    """The whole program that is run: it ends without an exception where all tests pass."""
    return (
        f"{problem.prompt}{completion}\n{problem.test}\n"
        f"check({problem.entry_point})\n"
    )  # fmt: skip


def judge_code(problem: Problem, completion: str, *, limits: Limits | None = None) -> Ran:
    """Run one completion against its tests, in the sandbox."""
    return run_sandboxed(program_of(problem, completion), limits=limits)


def pass_at_k(attempts: int, right: int, *, k: int) -> float:
    """Chance that k of the attempts, drawn without putting back, hold a right one."""
    if not 0 <= right <= attempts or not 1 <= k <= attempts:
        raise ValueError(f"pass@{k} of {right} right in {attempts} attempts is not defined")
    return 1.0 - math.comb(attempts - right, k) / math.comb(attempts, k)


def mean_pass_at(counts: Mapping[str, tuple[int, int]], *, ks: Sequence[int]) -> dict[str, float]:
    """Mean over problems, (attempts, right) each, for every k that all have attempts for."""
    fewest = min((attempts for attempts, _ in counts.values()), default=0)
    return {
        str(k): sum(pass_at_k(n, c, k=k) for n, c in counts.values()) / len(counts)
        for k in ks
        if k <= fewest
    }
