"""What is deployed: a run, a run with an adapter, or a model folder, all seen as one thing.

A folder flows in; a `Subject` flows out: the model with its renderer, the adapter attached to it if
there is one, held-out samples to compare answers on, and where its numbers are. A folder that
stands alone (`config.json` or `relevance.json`) is taken as it is; an adapter beside such a folder
is not merged into it unless it is named, because it may be merged already. Left out: merging and
writing (`deploy.py`), which numbers are told (`deploy_card.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError
from saccade.config.schema import Config

if TYPE_CHECKING:
    from saccade.data.samples import Sample
    from saccade.training.rundir import RunDir

SELECTOR_CARD, MODEL_CARD, ADAPTER_CARD = "relevance.json", "config.json", "adapter_config.json"
ADAPTER_FOLDERS = ("model", "model/adapter", "adapter", ".")
"""Where a run or a folder may keep an adapter, in order."""


@dataclass(frozen=True)
class Subject:
    """A loaded model that can be written as one folder.

    `selects` says whether it has a trained selector; `base` names the model it was made from;
    `named_adapter` that an adapter came from elsewhere, so the run's numbers are not about it.
    """

    name: str
    recipe: str
    base: str
    model: Any
    renderer: Any
    config: Config
    selects: bool
    adapter: Any = None
    adapter_name: str = ""
    named_adapter: bool = False
    run: RunDir | None = None


def open_subject(
    folder: Path,
    *,
    run: RunDir | None = None,
    config: Config | None = None,
    adapter: Path | None = None,
) -> Subject:
    """Load what `folder` holds; `config` says where samples come from when it is no run.

    Raises InputError when there is nothing to deploy in it.
    """
    from saccade.data.chat import ChatRenderer
    from saccade.models.relevance.merge import attach_adapter

    if run is not None:
        config = run.config()
    assert config is not None
    found = adapter or _own_adapter(folder)
    model, selects, base = _model(folder, run=run, config=config, adapted=found is not None)
    return Subject(
        name=(run is not None and config.run.name) or folder.resolve().name,
        recipe=config.recipe if run is not None else "",
        base=base,
        model=model,
        renderer=ChatRenderer(
            model.backbone.processor,
            min_pixels=config.model.min_pixels,
            max_pixels=config.model.max_pixels,
        ),
        config=config,
        selects=selects,
        adapter=None if found is None else attach_adapter(model, found),
        adapter_name="" if found is None else found.resolve().name,
        named_adapter=adapter is not None,
        run=run,
    )


def held_out(config: Config, *, limit: int) -> Sequence[Sample]:
    """Samples of `data.eval` with an image and an answer; InputError when there is none."""
    from saccade.data.sources import open_source
    from saccade.evaluation.load import read_samples, select_indices

    source = open_source(config.data.eval)
    skip = config.data.on_error == "skip"
    samples, _ = read_samples(source, select_indices(source, limit=limit), skip_broken=skip)
    usable = [one for one in samples if one.images and one.answer]
    if not usable:
        raise InputError(
            "data.eval: no sample with an image and an answer to check the written model on"
            "\n  fix: name such data, e.g. data.eval.type=jsonl data.eval.path=FILE"
        )
    return usable


def _own_adapter(folder: Path) -> Path | None:
    if _stands_alone(folder / "model") or _stands_alone(folder):
        return None
    return next(
        (folder / one for one in ADAPTER_FOLDERS if (folder / one / ADAPTER_CARD).is_file()), None
    )


def _stands_alone(folder: Path) -> bool:
    return any((folder / card).is_file() for card in (SELECTOR_CARD, MODEL_CARD))


def _model(
    folder: Path, *, run: RunDir | None, config: Config, adapted: bool
) -> tuple[Any, bool, str]:
    """The model, whether it has a trained selector, and the name of what it was made from."""
    if run is not None:
        if config.recipe in ("relevance", "tiny-base") and not (
            adapted and not _stands_alone(folder / "model")
        ):
            from saccade.evaluation.load import load_run

            selects = config.recipe == "relevance"
            base = _plain_name(config.model.name) if selects else ""
            return load_run(run).model, selects, base
        own = folder / "model"
        name = str(own) if _stands_alone(own) else config.model.name
    else:
        name = str(folder) if _stands_alone(folder) else _base_of_adapter(folder)
    model, selects = _loaded(name, config=config)
    made_from = config.model.name if run is not None else model.backbone.name
    return model, selects, _plain_name(made_from)


def _loaded(name: str, *, config: Config) -> tuple[Any, bool]:
    from saccade.config.schema import SelectorConfig
    from saccade.models.backbone import load_backbone
    from saccade.models.relevance.model import RelevanceModel

    if (Path(name) / SELECTOR_CARD).is_file():
        return RelevanceModel.from_pretrained(name, model=config.model), True
    backbone = load_backbone(config.model.model_copy(update={"name": name, "revision": None}))
    # with every token kept this is the base itself, bit for bit
    return RelevanceModel(backbone, SelectorConfig(keep=1.0)).eval(), False


def _base_of_adapter(folder: Path) -> str:
    card = folder / ADAPTER_CARD
    if not card.is_file():
        raise InputError(
            f"{folder}: nothing to deploy (no config.yaml, {MODEL_CARD}, {SELECTOR_CARD} or"
            f" {ADAPTER_CARD} in it)\n  fix: give a run directory, or a folder written by"
            " save_pretrained"
        )
    base = json.loads(card.read_text("utf-8")).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{card}: does not say which model the adapter was trained on")
    return str(base)


def _plain_name(name: str) -> str:
    """A model's name without the path of this machine."""
    path = Path(name)
    return path.name if path.is_absolute() or path.is_dir() or name.count("/") > 1 else name
