"""Save and load a selector: a few megabytes beside a pointer to its frozen base.

A folder holds `selector.safetensors` (trained tensors), `relevance.json` (selector settings, the
base's name, widths, format version) and, on request, the base itself under `base/`. Files are
written aside and renamed. Loading checks that the base has the width the selector was trained on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from saccade.config.errors import InputError
from saccade.config.schema import ModelConfig, SelectorConfig
from saccade.models.backbone import Backbone, load_backbone

if TYPE_CHECKING:
    from saccade.models.relevance.model import RelevanceModel

FORMAT = 1
CARD = "relevance.json"
WEIGHTS = "selector.safetensors"


def save(model: RelevanceModel, folder: Path, *, include_base: bool) -> None:
    """Write the folder in one rename; an existing one is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    aside.chmod(0o755)
    card: dict[str, Any] = {
        "format": FORMAT,
        "base": model.backbone.name,
        "base_included": include_base,
        "width": model.base.config.text_config.hidden_size,
        "parameters": sum(p.numel() for p in model.selector.parameters()),
        "selector": model.selector_config.model_dump(mode="json"),
    }
    (aside / CARD).write_text(json.dumps(card, indent=2) + "\n")
    tensors = {name: value.contiguous() for name, value in model.selector.state_dict().items()}
    save_file(tensors, str(aside / WEIGHTS))
    if include_base:
        model.base.save_pretrained(aside / "base")
        model.backbone.processor.save_pretrained(aside / "base")
    if folder.exists():
        shutil.rmtree(folder)
    aside.replace(folder)


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
        name = str(folder / "base") if card["base_included"] else card["base"]
        backbone = load_backbone((model or ModelConfig()).model_copy(update={"name": name}))
    width = backbone.model.config.text_config.hidden_size
    if width != card["width"]:
        raise InputError(
            f"{folder}: trained on a base of width {card['width']} ({card['base']}), "
            f"but {backbone.name} has width {width}"
        )
    loaded = RelevanceModel(backbone, config)
    loaded.selector.load_state_dict(state)
    return loaded.eval()
