"""Bring a finished or unfinished run back for scoring: its model, renderer and held-out samples.

In goes a run directory (and optionally one of its checkpoints); out comes a `LoadedRun` whose
`answer` turns samples into judged predictions under any selector and budget. A run of recipe
`tiny-base` has no selector of its own: it is scored as a plain model, and only the arms that need
no training apply. Which weights are scored is named by `model_fingerprint`, which reads files and
imports no torch. Left out: what is scored when, and where results go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError
from saccade.config.schema import Budget, Config
from saccade.data.samples import DataError, Sample
from saccade.evaluation.records import Prediction, make_prediction

if TYPE_CHECKING:
    from saccade.data.sources import SampleSource
    from saccade.training.rundir import RunDir

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many samples are done, and how many there are."""

UNTRAINED_ARMS = (
    "full", "random", "grid", "pool", "resize", "saliency",
    "vision_attention", "vision_attention_drop", "early_attention", "max_min_diversity", "dpp",
    "scope",
)  # fmt: skip
"""Selectors that exist without a trained selector."""
PLAIN_RECIPES = ("tiny-base", "pretrain", "sft", "dpo")
"""Recipes whose run is a base model of its own; they train no selector, `sft` and `dpo` may have
one in front (`front_selector`)."""


def no_progress(what: str, done: int, total: int) -> None:
    """The progress of someone who does not watch."""


@dataclass(frozen=True)
class Batch:
    """Samples and their tensors, on the model's device."""

    samples: list[Sample]
    tensors: dict[str, Any]
    images_of: list[int]  # images of each sample, in the packed order of the tensors


class LoadedRun:
    """A run's model, ready to answer questions."""

    def __init__(self, *, config: Config, model: Any, renderer: Any, arms: tuple[str, ...]) -> None:
        self.config = config
        self.model = model
        self.renderer = renderer
        self.arms = arms
        self.device = next(model.base.parameters()).device

    def pick_arm(self, name: str) -> str:
        """The selector asked for; a model that trained none reads everything instead of `trained`.

        Raises InputError for one the model has not.
        """
        if name == "trained" and name not in self.arms:
            return "full"
        if name not in self.arms:
            raise InputError(
                f"{self.config.run.name}: no selector {name!r}"
                f"\n  fix: use one of {', '.join(self.arms)}"
            )
        return name

    def batch(
        self, samples: Sequence[Sample], *, skip_broken: bool = False
    ) -> tuple[Batch, list[DataError]]:
        """Encode samples without their answers.

        Images are opened here, so this is where a damaged one shows: raised, or left out of the
        batch and returned when `skip_broken`.
        """
        import torch

        encoded, read, broken = [], [], []
        for sample in samples:
            try:
                encoded.append(self.renderer.encode(sample, with_answer=False))
                read.append(sample)
            except DataError as error:
                if not skip_broken:
                    raise
                broken.append(error)
        if not encoded:
            return Batch([], {}, []), broken
        tensors = {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value
            for name, value in self.renderer.collate(encoded).items()
        }
        images = [0 if item.grid_I3 is None else len(item.grid_I3) for item in encoded]
        return Batch(read, tensors, images), broken

    def features(self, batch: Batch) -> Any:
        """Run the vision tower once; every arm and budget can share the result."""
        import torch

        with torch.inference_mode():
            return self.model.encode(batch.tensors) if sum(batch.images_of) else None

    def answer(
        self, batch: Batch, *, arm: str, keep: Budget | None, seed: int, features: Any = None
    ) -> list[Prediction]:
        """Answer greedily under one selector and budget, and judge."""
        return self.reduce_and_answer(batch, arm=arm, keep=keep, seed=seed, features=features)[1]

    def reduce_and_answer(
        self, batch: Batch, *, arm: str, keep: Budget | None, seed: int, features: Any = None
    ) -> tuple[Any, list[Prediction]]:
        """Like `answer`, with the model's `Reduced` (kept cells, maps, tensions) beside it."""
        import torch

        with torch.inference_mode():
            if not sum(batch.images_of):
                return None, self._answer_text(batch, arm=arm, keep=keep)
            reduced = self.model.reduce(
                batch.tensors, arm=arm, keep=keep, seed=seed, features=features
            )
        return reduced, self.answer_reduced(batch, reduced, arm=arm, keep=keep)

    def answer_reduced(
        self, batch: Batch, reduced: Any, *, arm: str, keep: Budget | None
    ) -> list[Prediction]:
        """Answer from what `reduce` left, and judge."""
        import torch

        longest = self.config.eval.max_new_tokens
        with torch.inference_mode():
            new_BT = self.model.generate_reduced(reduced, max_new_tokens=longest)
        predictions, start = [], 0
        for row, text in enumerate(self.renderer.decode(new_BT)):
            selections = reduced.images[start : start + batch.images_of[row]]
            start += batch.images_of[row]
            predictions.append(
                make_prediction(
                    batch.samples[row],
                    text,
                    selections=selections,
                    tokens=reduced.sequence_lengths[row],
                    arm=arm,
                    keep=keep,
                    late_tokens=reduced.late_lengths[row] if reduced.late_lengths else None,
                    metric=self.config.eval.metric,
                )
            )
        return predictions

    def _answer_text(self, batch: Batch, *, arm: str, keep: Budget | None) -> list[Prediction]:
        """Samples without images: there is nothing to select, every selector answers alike."""
        names = ("input_ids", "attention_mask")
        inputs = {name: batch.tensors[name] for name in names}
        out_BT = self.model.generate(
            **inputs, max_new_tokens=self.config.eval.max_new_tokens, do_sample=False
        )
        texts = self.renderer.decode(out_BT[:, inputs["input_ids"].shape[1] :])
        lengths = inputs["attention_mask"].sum(1).tolist()
        asked: Any = {"arm": arm, "keep": keep, "metric": self.config.eval.metric}
        return [
            make_prediction(sample, text, selections=(), tokens=length, **asked)
            for sample, text, length in zip(batch.samples, texts, lengths, strict=True)
        ]


def weights_folder(run: RunDir, *, checkpoint: Path | None = None) -> Path:
    """Folder whose weights are scored: the given checkpoint, the exported model, or the newest.

    Raises InputError when the run has no weights yet.
    """
    if checkpoint is not None:
        if not checkpoint.is_dir():
            raise InputError(
                f"{checkpoint}: no such checkpoint folder\n  fix: name a step-N folder"
            )
        return checkpoint
    exported = run.path / "model"
    cards = ("relevance.json", "config.json", "recursion.json", "thoughts.json")
    if any((exported / card).is_file() for card in cards):
        return exported
    newest = run.latest_checkpoint()
    if newest is None:
        raise InputError(
            f"{run.path}: the run has neither a finished model nor a checkpoint"
            "\n  fix: run `saccade train` again, it continues where it stopped"
        )
    return newest


def fingerprint(folder: Path) -> str:
    """Hash of a folder's weights and configuration."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(_content_key(path))
    return digest.hexdigest()[:16]


def _content_key(path: Path) -> bytes:
    """A file's hash; of files above 256 MB only size and both ends, to stay instant."""
    size, end = path.stat().st_size, 1 << 20
    with path.open("rb") as file:
        if size <= 256 << 20:
            return hashlib.sha256(file.read()).digest()
        head = file.read(end)
        file.seek(-end, 2)
        return hashlib.sha256(head + file.read() + str(size).encode()).digest()


def model_fingerprint(run: RunDir, *, checkpoint: Path | None = None) -> str:
    """Name the weights that `load_run` would score: selector (or base) and the base under it."""
    config = run.config()
    parts = [fingerprint(weights_folder(run, checkpoint=checkpoint))]
    if config.recipe not in PLAIN_RECIPES:
        from saccade.models.backbone import locate

        base = Path(locate(config.model.name))
        parts.append(fingerprint(base) if base.is_dir() else f"{base}@{config.model.revision}")
    return "+".join(parts)


def base_config(run: RunDir) -> Any:
    """The Hugging Face configuration of the model that a run scores; loads no weights.

    An unfinished run of a `PLAIN_RECIPES` has not written its model yet, so it is rebuilt there.
    """
    from transformers import AutoConfig

    from saccade.models.backbone import locate

    config = run.config()
    if config.recipe in PLAIN_RECIPES:
        exported = run.path / "model"
        finished = (exported / "config.json").is_file()
        return AutoConfig.from_pretrained(exported) if finished else load_run(run).model.config
    return AutoConfig.from_pretrained(locate(config.model.name), revision=config.model.revision)


def select_indices(source: SampleSource, *, limit: int | None) -> list[int]:
    """Positions to score: all, or about `limit` spread evenly over the source's images.

    Whole images are taken (their questions share the encoder's work) until `limit` is reached, so
    files sorted by kind or answer are still sampled throughout.
    """
    return spread_evenly(source.groups(), limit=limit)


def spread_evenly(groups: Sequence[Sequence[int]], *, limit: int | None) -> list[int]:
    """All positions, or about `limit` in whole groups from the first to the last."""
    total = sum(map(len, groups))
    if limit is None or limit >= total:
        return [i for group in groups for i in group]
    wanted = max(1, round(limit / (total / len(groups))))
    picks = [groups[k * len(groups) // wanted] for k in range(wanted)]
    return [i for group in picks for i in group][:limit]


def read_samples(
    source: SampleSource, indices: Sequence[int], *, skip_broken: bool
) -> tuple[list[Sample], list[DataError]]:
    """Read rows; broken ones are returned as errors when `skip_broken`, else raised."""
    samples, broken = [], []
    for index in indices:
        try:
            samples.append(source[index])
        except DataError as error:
            if not skip_broken:
                raise
            broken.append(error)
    return samples, broken


def load_base(config: Config) -> LoadedRun:
    """The configured base model with an untrained selector (no run needed)."""
    from saccade.models.backbone import load_backbone
    from saccade.models.relevance.model import RelevanceModel

    set_threads(config)
    model = RelevanceModel(load_backbone(config.model), config.selector)
    return _loaded(config, model, arms=arms_of(config))


def load_run(run: RunDir, *, checkpoint: Path | None = None) -> LoadedRun:
    """The run's model with its newest weights, or those of `checkpoint`.

    Raises InputError when the run has no weights yet or they do not fit.
    """
    from saccade.models.backbone import load_backbone
    from saccade.models.relevance.model import RelevanceModel

    config = run.config()
    if config.recipe in ("recursion", "thoughts"):
        raise InputError(
            f"{run.path}: this model answers with symbols and sees no images"
            f"\n  fix: measure it with `saccade eval {run.path}`"
        )
    if config.recipe == "grounding":
        raise InputError(
            f"{run.path}: this model answers with a place on a screenshot and has no selector"
            f"\n  fix: measure it with `saccade eval {run.path}` or `saccade compare {run.path}`"
        )
    set_threads(config, earlier=(run.provenance() or {}).get("threads"))
    folder = weights_folder(run, checkpoint=checkpoint)
    if (folder / "state.json").is_file():
        model = _from_checkpoint(config, folder)
    elif config.recipe in PLAIN_RECIPES:
        own = config.model.model_copy(update={"name": str(folder), "revision": None})
        backbone = load_backbone(own)
        model = RelevanceModel(backbone, config.selector)
        if front_selector(config) is not None:
            model = RelevanceModel.from_pretrained(folder, backbone=backbone)
    else:
        model = RelevanceModel.from_pretrained(folder, backbone=load_backbone(config.model))
    return _loaded(config, model, arms=arms_of(config))


def arms_of(config: Config) -> tuple[str, ...]:
    """Selectors a run can be scored with: those that need no training, and what it trained."""
    if config.recipe in PLAIN_RECIPES:
        return UNTRAINED_ARMS if front_selector(config) is None else ("trained", *UNTRAINED_ARMS)
    scores = config.selector.scores if config.selector.kind == "balance" else ()
    return ("trained", *UNTRAINED_ARMS, *scores)


def front_selector(config: Config) -> str | None:
    """The run whose selector stands in front of a base that was fine-tuned behind it."""
    return {"sft": config.sft.selector, "dpo": config.dpo.selector}.get(config.recipe)


def describe_arm(name: str, config: Config) -> Any:
    """What a selector is in this run (`ArmInfo`): `trained` may be the trained peer."""
    from saccade.models.relevance.baselines import find_arm

    info = find_arm(name)
    if info.plain != "trained" or config.selector.kind == "balance":
        return info
    title = info.title.replace("trained selector", "trained soft gate (VisionSelector-like)")
    return replace(info, title=title, query_aware=False)


def _from_checkpoint(config: Config, folder: Path) -> Any:
    """Rebuild what was trained and put a checkpoint's weights into it."""
    from saccade.models.backbone import Backbone
    from saccade.models.relevance.model import RelevanceModel
    from saccade.training.run import load_recipe
    from saccade.training.state import load_weights

    recipe: Any = load_recipe(config)
    load_weights(recipe.model, checkpoint=folder)
    if isinstance(recipe.model, RelevanceModel):
        return recipe.model
    base = recipe.model.base.requires_grad_(False)
    backbone = Backbone(
        model=base, processor=recipe.processor, name=str(folder), location=str(folder)
    )
    return RelevanceModel(backbone, config.selector)


def _loaded(config: Config, model: Any, *, arms: tuple[str, ...]) -> LoadedRun:
    from saccade.data.chat import ChatRenderer

    renderer = ChatRenderer(
        model.backbone.processor,
        min_pixels=config.model.min_pixels,
        max_pixels=config.model.max_pixels,
    )
    return LoadedRun(config=config, model=model.eval(), renderer=renderer, arms=arms)


def set_threads(config: Config, *, earlier: int | None = None) -> None:
    """Compute with the configured number of threads, or with that of the training (`earlier`)."""
    import torch

    from saccade.training.threads import choose_threads

    # the sums of matrix products depend on the thread count: score as the run was trained
    torch.set_num_threads(choose_threads(config.training.threads, earlier=earlier))
