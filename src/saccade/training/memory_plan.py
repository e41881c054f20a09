"""What a step will read and how much memory it will take, before the first one.

A recipe, its samples and the configuration flow in; counts of images and tokens, bytes of weights,
optimizer and activations, and the largest batch that fits flow out. Tokens are counted on the
first batch of the run. Activations are measured: a few of its samples go forward and backward once
in every phase of the training, and their peak is scaled to the batch by its padded tokens. The
estimate is good to a factor of two (longer samples come later, allocators round up, attention
grows faster than its length). Nothing is updated, and no random number is used up. Left out:
evaluation, which needs less.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saccade.config.schema import Config
from saccade.data.samples import DataError
from saccade.data.sources import SampleSource
from saccade.training.batches import LoadedSamples, count_supervised, count_tokens, order_of
from saccade.training.state import untouched_randomness

if TYPE_CHECKING:
    from saccade.training.trainers import Recipe

PROBE_SAMPLES = 4
USABLE = 0.9
"""Share of the free memory that a plan counts on."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class TokenPlan:
    """One forward pass of one process; a step has `passes` of them, over all processes."""

    passes: int
    sequences: int
    images: int
    distinct_images: int
    visual_tokens: int
    kept_tokens: tuple[int, int] | None
    text_tokens: int
    longest: int

    @property
    def language_tokens(self) -> int:
        """Tokens the language model reads, padding included."""
        return self.sequences * self.longest


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one process; `activations` belong to the configured batch."""

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int | None
    free: int | None
    largest_batch: int | None
    device: str


@dataclass(frozen=True)
class Plan:
    """Both parts, as the `plan` event holds them."""

    tokens: TokenPlan | None
    memory: MemoryPlan

    def as_dict(self) -> dict[str, Any]:
        """The form of the event: fields `tokens` and `memory`."""
        tokens = None
        if self.tokens is not None:
            tokens = asdict(self.tokens) | {"language_tokens": self.tokens.language_tokens}
        return {"tokens": tokens, "memory": asdict(self.memory)}

    def lines(self, *, batch_size: int) -> list[str]:
        """What a person reads before training starts."""
        return [*_token_lines(self.tokens), *_memory_lines(self.memory, batch_size=batch_size)]


def make_plan(recipe: Recipe, source: SampleSource, *, config: Config, world_size: int = 1) -> Plan:
    """Count the first batch and measure a part of it."""
    device = next(recipe.model.parameters()).device
    batch = probe = None
    with suppress(DataError):  # a broken row is reported by the training, with its advice
        samples = first_samples(source, config=config)
        batch = recipe.collate(samples)
        probe = recipe.collate(samples[:PROBE_SAMPLES])
    if batch is None or probe is None:
        return Plan(None, _memory(recipe.model, None, config=config, world_size=world_size))
    passes = config.training.accumulation * world_size
    tokens = count_batch(batch, recipe=recipe, passes=passes)
    peak = measure_step(recipe, _moved(probe, device), config=config)
    if peak is not None:
        small = count_batch(probe, recipe=recipe, passes=1)
        peak = round(peak * _padded(batch, tokens) / max(1, _padded(probe, small)))
    return Plan(tokens, _memory(recipe.model, peak, config=config, world_size=world_size))


def first_samples(source: SampleSource, *, config: Config) -> list[Any]:
    """The samples of the run's first forward pass."""
    order = order_of(source, seed=config.run.seed)
    loaded = LoadedSamples(source, skip_broken=config.data.on_error == "skip")
    return [loaded[index].sample for index in order.take(0, config.training.batch_size)]


def count_batch(batch: dict[str, Any], *, recipe: Any, passes: int) -> TokenPlan:
    """Images and tokens of a batch; a recipe that chooses tokens says how many stay."""
    ids, types = batch.get("input_ids", batch["labels"]), batch.get("mm_token_type_ids")
    visual = 0 if types is None else int((types != 0).sum())
    grid = batch.get("image_grid_thw")
    kept = getattr(recipe, "kept_tokens", lambda grid: None)
    return TokenPlan(
        passes=passes,
        sequences=len(ids),
        images=0 if grid is None else len(grid),
        distinct_images=0 if grid is None else _distinct(batch["pixel_values"], grid),
        visual_tokens=visual,
        kept_tokens=None if grid is None else kept(grid),
        text_tokens=count_tokens(batch) - visual,
        longest=ids.shape[1] if ids.dim() > 1 else 1,
    )


def _distinct(pixels_ND: Tensor, grid_I3: Tensor) -> int:
    parts = pixels_ND.split(grid_I3.prod(-1).tolist())
    return len({(one.shape, one.cpu().numpy().tobytes()) for one in parts})


def _padded(batch: dict[str, Any], tokens: TokenPlan) -> int:
    return max(tokens.language_tokens, int(batch["labels"].numel()))


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


# measuring -----------------------------------------------------------------------------------


def measure_step(recipe: Recipe, batch: dict[str, Any], *, config: Config) -> int | None:
    """Peak bytes that a forward and backward pass adds, over all phases; None when out of memory.

    Leaves weights, gradients and random states as they were.
    """
    device = batch["labels"].device
    precision = config.training.precision
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    supervised = torch.tensor(float(max(1, count_supervised(batch))), device=device)
    was_training = recipe.model.training

    def one(step: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = recipe.loss(batch, step=step, denominator=supervised)["loss"]
        loss.backward()

    phases: Iterable[int] = getattr(recipe, "phases", lambda: [0])()
    recipe.model.train()
    try:
        with untouched_randomness():
            peaks = [_peak_of(recipe.model, partial(one, step), device) for step in phases]
            return max(peaks)
    except torch.OutOfMemoryError:
        return None
    finally:
        recipe.model.zero_grad(set_to_none=True)
        recipe.model.train(was_training)


def _peak_of(model: nn.Module, work: Callable[[], None], device: torch.device) -> int:
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        work()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make, from birth to release.

    What an operator allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated: on the GPU, or in RAM within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # no limit reads "max"
        limit = int((CGROUP / "memory.max").read_text("ascii"))
        available.append(limit - int((CGROUP / "memory.current").read_text("ascii")))
    return max(0, min(available)) if available else None


def _memory(
    model: nn.Module, activations: int | None, *, config: Config, world_size: int
) -> MemoryPlan:
    parameters = list(model.parameters())
    device = parameters[0].device
    trained = [one for one in parameters if one.requires_grad]
    frozen = _bytes(parameters) - _bytes(trained)
    if config.training.parallel == "fsdp":
        frozen = math.ceil(frozen / world_size)
    gradients, optimizer = _bytes(trained), 2 * _bytes(trained)  # AdamW keeps two moments
    free = free_memory(device)
    largest = None
    if activations and free is not None:
        room = USABLE * free - gradients - optimizer
        largest = max(0, int(room * config.training.batch_size / activations))
    return MemoryPlan(
        frozen=frozen,
        trained=_bytes(trained),
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        free=free,
        largest_batch=largest,
        device=str(device),
    )


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(one.numel() * one.element_size() for one in parameters)


# words ---------------------------------------------------------------------------------------


def _token_lines(tokens: TokenPlan | None) -> list[str]:
    if tokens is None:
        return []
    parts = [f"{tokens.sequences} sequences"]
    if tokens.images:
        parts.append(f"{tokens.distinct_images} different images")
        kept = ""
        if tokens.kept_tokens:
            low, high = tokens.kept_tokens
            kept = f" (to keep: {low:,})" if low == high else f" (to keep: {low:,} to {high:,})"
        parts.append(f"{tokens.visual_tokens:,} visual tokens{kept}")
    parts.append(f"{tokens.text_tokens:,} text tokens")
    size = f"{tokens.sequences} x {tokens.longest} = {tokens.language_tokens:,}"
    parts.append(f"{size} tokens in the language model")
    passes = "" if tokens.passes == 1 else f", {tokens.passes} such batches per step"
    return [f"per batch: {', '.join(parts)}{passes}"]


def _memory_lines(memory: MemoryPlan, *, batch_size: int) -> list[str]:
    extra = memory.gradients + memory.optimizer
    activations = "activations not measured"
    if memory.activations is not None:
        activations = f"about {size_text(memory.activations)} of activations"
    free = "" if memory.free is None else f"; {size_text(memory.free)} free on {memory.device}"
    lines = [
        f"memory: {size_text(memory.frozen)} frozen, {size_text(memory.trained)} trained,"
        f" {size_text(extra)} gradients and optimizer, {activations}{free}"
    ]
    if memory.largest_batch is not None:
        lines.append(
            f"largest batch that fits: about {memory.largest_batch:,}"
            f" (training.batch_size is {batch_size}; good to a factor of two)"
        )
    return lines


def size_text(size: int) -> str:
    """Bytes as people read them."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
