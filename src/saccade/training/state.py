"""What a checkpoint holds, and how it goes back into a live trainer.

Trained weights, optimizer, scheduler and random states flow out as the files of a checkpoint
folder and back in, bit for bit. Frozen weights are not saved: they come from the base model.
Nothing is unpickled: tensors and plain values only. How folders are written and verified is
`checkpoints.py`'s.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from saccade.config.errors import InputError
from saccade.training.checkpoints import Writer

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
RANDOM = "random.pt"
STATE = "state.json"


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters, and buffers that belong to the state dict."""
    persistent = model.state_dict(keep_vars=True)
    buffers = {name: one for name, one in model.named_buffers() if name in persistent}
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    return {**trained, **buffers}


def weights_writer(model: nn.Module) -> Writer:
    """Writer of the trained tensors as safetensors."""

    return lambda file: tensors_writer(trained_tensors(model))(file)  # when it is written


def tensors_writer(tensors: Mapping[str, Tensor]) -> Writer:
    """Writer of named tensors as safetensors."""

    def write(file: BinaryIO) -> None:
        plain = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
        file.write(safetensors.torch.save(plain))

    return write


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `tensors_writer` wrote."""
    return safetensors.torch.load_file(path)


def load_weights(model: nn.Module, *, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model; raises InputError when they do not fit."""
    stored = safetensors.torch.load_file(checkpoint / WEIGHTS)
    wanted = trained_tensors(model)
    strange = sorted(set(stored) ^ set(wanted)) or sorted(
        name for name, one in stored.items() if one.shape != wanted[name].shape
    )
    if strange:
        raise InputError(
            f"{checkpoint / WEIGHTS}: does not fit this model; first difference: {strange[0]}"
            "\n  fix: use the base model and selector settings the run was started with"
        )
    with torch.no_grad():
        for name, one in wanted.items():
            one.copy_(stored[name])


def torch_writer(content: Any) -> Writer:
    """Writer of tensors and plain values in torch's own format; equal content, equal bytes."""
    return lambda file: torch.save(_canonical(content), file)  # type: ignore[arg-type]


def _canonical(content: Any) -> Any:
    """Share equal strings: pickle writes a string once per object, and after a resume the keys of
    loaded and of new optimizer states are equal but not the same objects."""
    if isinstance(content, dict):
        return {_canonical(key): _canonical(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_canonical(value) for value in content]
    return sys.intern(content) if type(content) is str else content


def json_writer(content: Mapping[str, Any]) -> Writer:
    """Writer of a JSON file."""

    def write(file: BinaryIO) -> None:
        file.write(json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")

    return write


def read_torch(path: Path) -> Any:
    """Read what `torch_writer` wrote; refuses anything that is not plain data."""
    return torch.load(path, map_location="cpu", weights_only=True)


def random_states() -> dict[str, Any]:
    """All random states of this process, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  recipes may use it
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore what `random_states` returned."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    restored = (name, keys.numpy().astype(np.uint32), *rest)
    np.random.set_state(restored)  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Run a block (an evaluation) without moving the training's random states."""
    before = random_states()
    try:
        yield
    finally:
        set_random_states(before)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Step, sample position, samples per step, seed and recipe of a checkpoint."""
    return json.loads((checkpoint / STATE).read_text("utf-8"))
