"""Load a frozen base model and its processor: a hub name, a local folder, or `tiny`.

In goes a `ModelConfig`, out comes a `Backbone` in evaluation mode with every parameter frozen.
The tiny base that ships with saccade, a folder in hub layout and `Qwen/Qwen3-VL-2B-Instruct` take
the same path. Left out: anything that changes the model (see `relevance/model.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import ModelConfig
from saccade.models.processing import load_processor

SUPPORTED_TYPES = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Backbone:
    """A frozen vision-language model, its processor, and where it came from."""

    model: Any
    processor: Any
    name: str
    location: str


def tiny_folder() -> Path:
    """Folder of the tiny base inside the installed package."""
    return Path(str(resources.files("saccade") / "assets" / "tiny-base"))


def pick_device(config: ModelConfig) -> torch.device:
    """The device to run on; asking for CUDA where there is none is an error, not a fallback."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise OutsideError(
            "model.device=cuda, but torch sees no CUDA device"
            "\n  fix: install a CUDA build of torch and a driver, or set model.device=cpu"
        )
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def locate(name: str) -> str:
    """Resolve `tiny` and local folders; other names are left for the hub."""
    if name == "tiny":
        folder = tiny_folder()
        if not (folder / "config.json").is_file():
            raise OutsideError(
                f"the tiny base is not in this installation ({folder})"
                "\n  fix: reinstall saccade, or train it with `saccade train tiny-base`"
            )
        return str(folder)
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"model.name={name}: the folder has no config.json"
                "\n  fix: point at a folder saved with save_pretrained, or in hub layout"
            )
        return str(path)
    if looks_local:
        raise InputError(
            f"model.name={name}: no such model folder"
            "\n  fix: use `tiny`, an existing folder, or a hub name like Qwen/Qwen3-VL-2B-Instruct"
        )
    return name


def load_backbone(config: ModelConfig, *, device: torch.device | None = None) -> Backbone:
    """Load, freeze and place the base model.

    Raises InputError for a folder that is not a model or not a Qwen-VL, OutsideError when a hub
    name can be neither found locally nor downloaded.
    """
    location = locate(config.name)
    device = device or pick_device(config)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    try:
        model_config = AutoConfig.from_pretrained(location, revision=config.revision)
        if model_config.model_type not in SUPPORTED_TYPES:
            raise InputError(
                f"model.name={config.name}: model type {model_config.model_type!r} is not supported"
                f"\n  fix: use one of {', '.join(SUPPORTED_TYPES)}"
            )
        processor = load_processor(location, revision=config.revision)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            location,
            revision=config.revision,
            dtype=DTYPES[dtype],
            attn_implementation=config.attention,
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise OutsideError(
            f"model.name={config.name}: cannot be loaded: {reason}"
            "\n  fix: check the name and the network (HF_TOKEN for gated models), or pass a folder"
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    return Backbone(model=model, processor=processor, name=config.name, location=location)
