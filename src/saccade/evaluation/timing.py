"""Measure what a selector costs and saves: encoder, selector and prefill apart.

In go a loaded run and one batch; out come wall milliseconds per sample by part and the selector's
own arithmetic. Timing is a pass of its own (warm-up first, then the median of repeats), never
mixed with scoring: CUDA events on a GPU, `perf_counter` on a CPU. Prefill is one pass over all
tokens that fills the KV cache and yields the logits of the first new token. Left out: decode
speed, which dropping visual tokens hardly moves.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from saccade.config.schema import Budget
from saccade.models.flops import count_flops


@dataclass(frozen=True)
class Cost:
    """Means per sample of one selector at one budget, in milliseconds and operations."""

    encoder_ms: float
    selector_ms: float
    prefill_ms: float
    selector_flops: float

    @property
    def total_ms(self) -> float:
        return self.encoder_ms + self.selector_ms + self.prefill_ms

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "total_ms": self.total_ms}


def median_ms(function: Callable[[], Any], *, device: Any, warmup: int, repeats: int) -> float:
    """Median wall time of `function` in milliseconds."""
    for _ in range(warmup):
        function()
    timer = _cuda_ms if device.type == "cuda" else _cpu_ms
    return statistics.median(timer(function) for _ in range(repeats))


def _cpu_ms(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return 1000.0 * (time.perf_counter() - start)


def _cuda_ms(function: Callable[[], Any]) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def prefill(model: Any, inputs: Any) -> Any:
    """One pass of the language model over reduced inputs: KV cache and logits of one position."""
    return model.base(**inputs.forward_arguments(), use_cache=True, logits_to_keep=1)


def measure_arms(
    model: Any,
    tensors: dict[str, Any],
    *,
    cells: Sequence[tuple[str, Budget]],
    device: Any,
    warmup: int = 1,
    repeats: int = 3,
) -> dict[tuple[str, Budget], Cost]:
    """Time (selector, budget) pairs of a `RelevanceModel` on one batch.

    `resize` has no selector: its encoder time is resizing plus encoding the smaller image.
    """
    import torch

    samples = len(tensors["input_ids"])

    def timed(function: Callable[[], Any]) -> float:
        return median_ms(function, device=device, warmup=warmup, repeats=repeats) / samples

    costs: dict[tuple[str, Budget], Cost] = {}
    operations: dict[str, float] = {}
    with torch.inference_mode():
        features = model.encode(tensors)
        encoder_ms = timed(lambda: model.encode(tensors))
        for arm, keep in cells:
            select = functools.partial(model.reduce, tensors, arm=arm, keep=keep, features=features)
            if arm not in operations:  # they do not depend on the budget
                operations[arm] = count_flops(select)[1] / samples
            reduced = select()
            selector_ms = timed(select)
            prefill_ms = timed(functools.partial(prefill, model, reduced.inputs))
            if arm == "resize":
                costs[arm, keep] = Cost(selector_ms, 0.0, prefill_ms, 0.0)
            else:
                costs[arm, keep] = Cost(encoder_ms, selector_ms, prefill_ms, operations[arm])
    return costs
