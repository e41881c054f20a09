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


def prefill_reduced(model: Any, reduced: Any) -> Any:
    """As above for what `reduce` gave: a selector that drops inside the model chooses in here."""
    with reduced.during():
        return prefill(model, reduced.inputs)


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

    `resize` has no selector: its encoder time is resizing plus encoding the smaller image. With a
    placement before the tower, a trained selector's encoder time is that of preview and chosen
    cells. A selector inside the language model is part of its prefill.
    """
    import torch

    from saccade.models.relevance.baselines import find_arm

    samples = len(tensors["input_ids"])

    def timed(function: Callable[[], Any]) -> float:
        return median_ms(function, device=device, warmup=warmup, repeats=repeats) / samples

    costs: dict[tuple[str, Budget], Cost] = {}
    early = model.selector_config.placement != "features"
    with torch.inference_mode():
        features = model.encode(tensors)
        look_ms = timed(lambda: model.encode(tensors))
        whole_ms = timed(lambda: model.encode(tensors).whole()) if early else look_ms
        features.whole()  # from here on the images are known to every selector that reads them
        for arm, keep in cells:
            select = functools.partial(model.reduce, tensors, arm=arm, keep=keep, features=features)
            info = find_arm(arm)
            steps = info.set_step or (arm == "trained" and model.selector_config.set_step)
            alone = info.trained and (early or not steps)
            score = functools.partial(model.score, features) if alone else select
            reduced = select()  # first: what it catches in the encoder's pass is no cost of its own
            operations = count_flops(score)[1] / samples
            select_ms = timed(select)
            prefill_ms = timed(functools.partial(prefill_reduced, model, reduced))
            if info.how == "inside":
                costs[arm, keep] = Cost(whole_ms, 0.0, prefill_ms, 0.0)
            elif arm == "resize":
                costs[arm, keep] = Cost(select_ms, 0.0, prefill_ms, 0.0)
            elif early and info.trained:
                # choosing comes between the first look and encoding what was chosen
                score_ms = timed(score)
                encoder_ms = look_ms + max(0.0, select_ms - score_ms)
                costs[arm, keep] = Cost(encoder_ms, score_ms, prefill_ms, operations)
            else:
                costs[arm, keep] = Cost(whole_ms, select_ms, prefill_ms, operations)
    return costs
