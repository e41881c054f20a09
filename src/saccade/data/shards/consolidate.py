"""The files of a shard folder: batches as tensors, joined into consolidated shards, taken apart.

Tensors flow in and become the bytes of a safetensors file, the same bytes for the same tensors;
ids ride in the file's metadata. Batches that belong to one shard are joined in order; single rows
are read without the rest. Whether a file is sound is the manifest's to say (`manifest.py`).

Tensors of n samples: positions [n] (int64), kinds [n] (uint8, names in the manifest), inputs and
targets [n, symbols] (int16), sketches [n, K, D], children [n, K, C, D] and tokens [n, T, D] (half
precision; the last two if kept).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from saccade.data.samples import DataError
from saccade.data.shards.manifest import Entry, fault

METADATA = "saccade"
LENGTH_BYTES = 8
"""The length of a safetensors header, which stands before it."""
DTYPES = {"I64": torch.int64, "I16": torch.int16, "U8": torch.uint8, "F16": torch.float16}


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive samples: their ids and tensors, one row each."""

    ids: list[str]
    tensors: dict[str, Tensor]


class RowFile:
    """Rows of a listed file that is known to be sound, read one at a time."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.path = folder / entry.file
        with self.path.open("rb") as file:
            self._identity = _identity(os.fstat(file.fileno()))
            length = int.from_bytes(self._read(file, 0, LENGTH_BYTES), "little")
            header = json.loads(self._read(file, LENGTH_BYTES, length))
        self.ids: list[str] = json.loads(header.pop("__metadata__")[METADATA])["ids"]
        self._start, self._tensors = LENGTH_BYTES + length, header

    def unchanged(self) -> bool:
        """Whether the file is still the one that was found sound."""
        try:
            return _identity(self.path.stat()) == self._identity
        except OSError:
            return False

    def row(self, index: int) -> dict[str, Any]:
        """One sample: `id` and a tensor per name."""
        with self.path.open("rb", buffering=0) as file:
            tensors = {name: self._tensor(file, name, index) for name in self._tensors}
        return {"id": self.ids[index], **tensors}

    def _tensor(self, file: IO[bytes], name: str, index: int) -> Tensor:
        about = self._tensors[name]
        dtype, shape = DTYPES[about["dtype"]], about["shape"][1:]
        size = dtype.itemsize * math.prod(shape)
        content = self._read(file, self._start + about["data_offsets"][0] + index * size, size)
        return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)

    def _read(self, file: IO[bytes], start: int, size: int) -> bytes:
        content = os.pread(file.fileno(), size, start)
        if len(content) != size:
            raise damaged(self.path, "it was cut short while it was read")
        return content


def _identity(about: os.stat_result) -> tuple[int, int, int]:
    return about.st_ino, about.st_size, about.st_mtime_ns


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
        fix="build it again with `saccade data build shards --repair`; data.on_error=skip trains"
        " without it",
    )


def join(blocks: Sequence[Block]) -> Block:
    """Blocks one after another as one."""
    ids = [name for block in blocks for name in block.ids]
    names = blocks[0].tensors
    return Block(ids, {name: torch.cat([one.tensors[name] for one in blocks]) for name in names})
