"""The files of a shard folder: batches as tensors, joined into consolidated shards, taken apart.

Tensors flow in and become the bytes of a safetensors file, the same bytes for the same tensors;
ids ride in the file's metadata. Batches that belong to one shard are joined in order. Whether a
file is sound is the manifest's to say (`manifest.py`).

Tensors of n samples: positions [n] (int64), kinds [n] (uint8, names in the manifest), inputs and
targets [n, symbols] (int16), sketches [n, K, D], children [n, K, C, D] and tokens [n, T, D] (half
precision; the last two if kept).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from saccade.data.samples import DataError
from saccade.data.shards.manifest import Entry, fault

METADATA = "saccade"


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive samples: their ids and tensors, one row each."""

    ids: list[str]
    tensors: dict[str, Tensor]

    def row(self, index: int) -> dict[str, Any]:
        """One sample: `id` and a tensor per name."""
        return {"id": self.ids[index], **{name: one[index] for name, one in self.tensors.items()}}


def to_bytes(block: Block) -> bytes:
    """The file's content."""
    # one entry of metadata, because safetensors writes several in any order
    about = {METADATA: json.dumps({"ids": block.ids})}
    plain = {name: one.contiguous() for name, one in sorted(block.tensors.items())}
    return safetensors.torch.save(plain, metadata=about)


def read_block(folder: Path, entry: Entry, *, verify: bool = True) -> Block:
    """Read a listed file; raises `DataError` with its name when it is damaged."""
    problem = fault(folder, entry) if verify else None
    path = folder / entry.file
    if problem is None:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                ids = json.loads(file.metadata()[METADATA])["ids"]
                return Block(ids, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            problem = f"unreadable ({error})"
    raise damaged(path, problem)


def damaged(path: Path, problem: str) -> DataError:
    """The message about a damaged file."""
    return DataError(
        f"the shard is damaged: {problem}",
        where=str(path),
        fix="rebuild it with `saccade data build shards --repair`",
    )


def join(blocks: Sequence[Block]) -> Block:
    """Blocks one after another as one."""
    ids = [name for block in blocks for name in block.ids]
    names = blocks[0].tensors
    return Block(ids, {name: torch.cat([one.tensors[name] for one in blocks]) for name in names})
