"""Bake an adapter into the base and write one folder, after proof that it answers the same.

In go a `RelevanceModel`, the PEFT adapter attached to it (or none) and real samples; out comes a
folder with the selector and the merged base, which needs neither PEFT nor the original base. The
folder is written aside, loaded anew and compared with the model as it was: logits where an answer
is predicted, and greedy answers. Drift above the tolerance is an error and leaves nothing behind.

Shapes: T supervised tokens of one sample, V vocabulary.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import ModelConfig
from saccade.data.chat import IGNORE_INDEX, ChatRenderer
from saccade.data.samples import Sample
from saccade.models.relevance import storage
from saccade.models.relevance.model import RelevanceModel

TOLERATED_SHARES = {torch.float32: 1e-4, torch.bfloat16: 0.03}
"""Drift that rounding explains, per precision of the base, as a share of the largest logit."""
ADAPTER_CARD = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reading:
    """What a model says to one sample: logits where its answer is predicted, and its own answer."""

    sample_id: str
    logits_TV: Tensor
    answer: str


@dataclass(frozen=True)
class Parity:
    """How far the written folder is from the model it was made of."""

    samples: int
    largest_drift: float
    worst_sample: str
    tolerance: float
    answers_changed: int


def attach_adapter(model: RelevanceModel, folder: Path) -> Any:
    """Load a saved adapter onto the model, or onto the base inside, whichever it was made for.

    Raises InputError when the folder holds no adapter or one that does not fit, OutsideError when
    PEFT is not installed.
    """
    peft = _peft()
    base = model.backbone.name
    for name in (ADAPTER_CARD, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: not a saved adapter ({name} is missing)"
                "\n  fix: point at a folder written by an adapter's save_pretrained"
            )
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        stored = set(file.keys())
    whole = any(".base.model." in name or ".selector." in name for name in stored)
    try:
        adapter = peft.PeftModel.from_pretrained(model if whole else model.base, str(folder))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: the adapter does not fit {base}: {reason}") from error
    strange = sorted(
        stored ^ set(peft.get_peft_model_state_dict(adapter, save_embedding_layers=False))
    )
    if strange:
        raise InputError(
            f"{folder}: the adapter does not fit {base}; first difference: {strange[0]}"
            "\n  fix: use the run the adapter was trained on"
        )
    return adapter.eval()


def write_merged(
    model: RelevanceModel,
    folder: Path,
    *,
    samples: Sequence[Sample],
    renderer: ChatRenderer,
    adapter: Any = None,
    tolerance: float | None = None,
    max_new_tokens: int = 16,
    progress: Progress = lambda what, done, total: None,
) -> Parity:
    """Merge `adapter` into `model` in place and write both as one folder, if they agree.

    Raises InputError when the written folder, loaded anew, drifts by more than `tolerance` on any
    of `samples` (default: by precision, see `TOLERATED_SHARES`); `folder` is then not made.
    """
    if not samples:
        raise InputError("merging needs at least one sample to compare answers on")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists already\n  fix: name a new folder")
    model.eval()

    def read(one: RelevanceModel, renderer: ChatRenderer, what: str) -> list[Reading]:
        readings = []
        for done, sample in enumerate(samples):
            progress(what, done, len(samples))
            readings.append(_read(one, sample, renderer, max_new_tokens=max_new_tokens))
        return readings

    before = read(model, renderer, "answering as it is")
    if tolerance is None:
        largest = max(float(reading.logits_TV.abs().max()) for reading in before)
        tolerance = largest * TOLERATED_SHARES.get(model.dtype, min(TOLERATED_SHARES.values()))
    _merge(model, adapter, where=folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = aside / "model"
        storage.save(model, made, include_base=True)
        again = RelevanceModel.from_pretrained(made, model=_same_kind(model))
        own = ChatRenderer(
            again.backbone.processor,
            min_pixels=renderer.size["shortest_edge"],
            max_pixels=renderer.size["longest_edge"],
        )
        parity = _compare(before, read(again, own, "answering merged"), tolerance=tolerance)
        made.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return parity


@torch.no_grad()
def _read(
    model: RelevanceModel, sample: Sample, renderer: ChatRenderer, *, max_new_tokens: int
) -> Reading:
    def batch(*, with_answer: bool) -> dict[str, Any]:
        made = renderer.batch([sample], with_answer=with_answer)
        return {
            name: value.to(model.device)
            for name, value in made.items()
            if isinstance(value, Tensor)
        }

    told = batch(with_answer=True)
    predicts_L = (told.pop("labels")[0, 1:] != IGNORE_INDEX).nonzero()[:, 0]
    logits = model(**told, full_length_logits=True).logits
    asked = batch(with_answer=False)
    asked.pop("labels")
    new = model.generate(**asked, max_new_tokens=max_new_tokens, do_sample=False)
    return Reading(
        sample_id=sample.id,
        logits_TV=logits[0, predicts_L].float().cpu(),
        answer=renderer.decode(new[:, asked["input_ids"].shape[1] :])[0],
    )


def _compare(before: list[Reading], after: list[Reading], *, tolerance: float) -> Parity:
    """Raises InputError for the worst sample when its drift is above the tolerance."""
    drifts = [
        float((old.logits_TV - new.logits_TV).abs().nan_to_num(nan=torch.inf).max())
        for old, new in zip(before, after, strict=True)
    ]
    worst = max(range(len(drifts)), key=drifts.__getitem__)
    sample = before[worst].sample_id
    if not drifts[worst] <= tolerance:
        raise InputError(
            f"merging changes the model: on sample {sample} a logit moves by {drifts[worst]:.3g}, "
            f"more than the tolerance of {tolerance:.3g} (answer {before[worst].answer!r} -> "
            f"{after[worst].answer!r}); nothing was written"
            "\n  fix: merge in float32 (model.dtype=float32), keep the adapter apart, or raise "
            "the tolerance if the answers are still right"
        )
    return Parity(
        samples=len(before),
        largest_drift=drifts[worst],
        worst_sample=sample,
        tolerance=tolerance,
        answers_changed=sum(
            old.answer != new.answer for old, new in zip(before, after, strict=True)
        ),
    )


def _merge(model: RelevanceModel, adapter: Any, *, where: Path) -> None:
    if adapter is None:
        return
    if adapter.get_base_model() not in (model, model.base):
        raise InputError(f"{where}: the adapter is attached to another model")
    try:
        adapter.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InputError(f"{where}: the adapter cannot be merged: {error}") from error


def _same_kind(model: RelevanceModel) -> ModelConfig:
    """Load the folder as the model at hand is: same device, precision and attention."""
    return ModelConfig.model_validate(
        {
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.base.config._attn_implementation,
        }
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise OutsideError(
            "adapters need PEFT, which is not installed\n  fix: pip install 'saccade[rl]'"
        ) from error
    return peft
