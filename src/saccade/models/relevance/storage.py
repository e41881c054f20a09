"""Save and load a selector: a few megabytes beside a pointer to its frozen base.

A folder holds `selector.safetensors` (trained tensors), `relevance.json` (selector settings, the
base's name, widths, format version) and, on request, the base itself under `base/`. Files are
written aside and renamed. Loading checks that the base has the width the selector was trained on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saccade.config.errors import InputError
from saccade.config.schema import ModelConfig, SelectorConfig
from saccade.models.backbone import Backbone, load_backbone

if TYPE_CHECKING:
    from saccade.models.relevance.model import RelevanceModel

FORMAT = 1
CARD = "relevance.json"
WEIGHTS = "selector.safetensors"
BASE = "base"
HERE = "."
"""Name of a base that lies in the same folder as the selector."""
OWN = (BASE, WEIGHTS, CARD)
ADAPTER_MARKS = ("lora_", "base_layer.", "modules_to_save.", "original_module.")


def save(
    model: RelevanceModel,
    folder: Path,
    *,
    include_base: bool,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the folder in one rename; an existing selector in it is replaced, other files stay.

    `state` is the model's state dict where it has to be gathered first (sharded training). Raises
    InputError when an adapter is attached to what would be saved.
    """
    state = model.state_dict() if state is None else state
    selector = _part(state, "selector.", where=folder)
    base = _part(state, "base.", where=folder) if include_base else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    aside.chmod(0o755)
    card: dict[str, Any] = {
        "format": FORMAT,
        "base": model.backbone.name,
        "base_included": include_base,
        "width": model.base.config.text_config.hidden_size,
        "parameters": sum(p.numel() for p in model.selector.parameters()),
        "full_length_logits": model.full_length_logits,
        "selector": model.selector_config.model_dump(mode="json"),
    }
    try:
        (aside / CARD).write_text(json.dumps(card, indent=2) + "\n")
        save_file(selector, str(aside / WEIGHTS))
        if base is not None:
            model.base.save_pretrained(aside / BASE, state_dict=base)
            model.backbone.processor.save_pretrained(aside / BASE)
        put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put_in_place(aside: Path, folder: Path) -> None:
    """Let a finished folder take the place of `folder`, whose other files stay.

    A trainer's output folder also holds its checkpoints, so it is not replaced as a whole.
    """
    if not folder.exists() or {path.name for path in folder.iterdir()} <= set(OWN):
        if folder.exists():
            shutil.rmtree(folder)
        aside.replace(folder)
        return
    # the card goes first and comes last: without it the folder is not a saved selector
    (folder / CARD).unlink(missing_ok=True)
    for name in OWN:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        if (aside / name).exists():
            (aside / name).replace(folder / name)


def _part(state: Mapping[str, Tensor], prefix: str, *, where: Path) -> dict[str, Tensor]:
    """The tensors of one part under their own names."""
    part = {
        name.removeprefix(prefix): one.contiguous()
        for name, one in state.items()
        if name.startswith(prefix)
    }
    if any(mark in name for name in part for mark in ADAPTER_MARKS):
        raise InputError(
            f"{where}: an adapter is attached to the {prefix[:-1]}, so its weights are in pieces"
            "\n  fix: save the adapter with its own save_pretrained, or merge it with saccade merge"
        )
    return part


def find(name: str, *, root: Path, key: str) -> Path:
    """The folder of a saved selector: a run, its `model` folder, or a run's name below `root`.

    Raises InputError, which names the configuration's `key`, when there is none.
    """
    places = [Path(name).expanduser(), root / name]
    for place in places:
        for folder in (place / "model", place):
            if (folder / CARD).is_file():
                return folder
    exists = next((place for place in places if place.is_dir()), None)
    what = "no such run" if exists is None else "the run has no finished selector"
    raise InputError(
        f"{key}={name}: {what}\n  fix: name a finished run of recipe relevance, or its model folder"
    )


def load_frozen(folder: Path, *, backbone: Backbone, settings: SelectorConfig) -> RelevanceModel:
    """A saved selector in front of `backbone`, frozen, at the budget of `settings`.

    What learns in the base goes on learning. Raises InputError when it is damaged or does not fit.
    """
    learns = {p for p in backbone.model.parameters() if p.requires_grad}
    model = load(folder, backbone=backbone, model=None)
    model.selector.requires_grad_(False)
    assert learns == {p for p in model.parameters() if p.requires_grad}
    model.selector_config = model.selector_config.model_copy(update={"keep": settings.keep})
    return model


def load(folder: Path, *, backbone: Backbone | None, model: ModelConfig | None) -> RelevanceModel:
    """Rebuild the model; InputError names what is missing, damaged or does not fit."""
    from saccade.models.relevance.model import RelevanceModel

    try:
        card = json.loads((folder / CARD).read_text())
        config = SelectorConfig.model_validate(card["selector"])
        state = load_file(str(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: not a saved selector ({Path(error.filename or WEIGHTS).name} is missing)"
            "\n  fix: point at runs/NAME/model of a finished relevance run"
        ) from error
    except (json.JSONDecodeError, KeyError, ValidationError, SafetensorError) as error:
        raise InputError(f"{folder}: the saved selector is damaged: {error}") from error
    if backbone is None:
        name = str(folder / BASE) if card["base_included"] else card["base"]
        name = str(folder) if name == HERE else name
        backbone = load_backbone((model or ModelConfig()).model_copy(update={"name": name}))
    width = backbone.model.config.text_config.hidden_size
    if width != card["width"]:
        raise InputError(
            f"{folder}: trained on a base of width {card['width']} ({card['base']}), "
            f"but {backbone.name} has width {width}"
        )
    loaded = RelevanceModel(backbone, config)
    loaded.selector.load_state_dict(state)
    loaded.full_length_logits = bool(card.get("full_length_logits", False))
    return loaded.eval()
