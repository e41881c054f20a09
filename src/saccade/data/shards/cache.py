"""Encoded pictures kept by content, so the same picture is encoded once.

A digest of pixels and of everything the numbers depend on names an entry; its tensors come back bit
for bit. Entries are small files with their own checksum, written aside and renamed; a damaged one
counts as absent. The folder takes no more entries once it is full. Shards never depend on it: it
only saves time when they are built again or other samples show the same picture.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

GB = 1 << 30
DIGEST_BYTES = 32


class PictureCache:
    """Half-precision tensors of fixed shapes under a digest; `max_bytes=0` keeps nothing."""

    def __init__(
        self, folder: Path, *, context: str, shapes: Mapping[str, tuple[int, ...]], max_bytes: int
    ) -> None:
        self.folder = folder
        self.context = context
        self.shapes = dict(shapes)
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self.bytes = 0
        if max_bytes:
            self.bytes = sum(file.stat().st_size for file in folder.glob("*/*") if file.is_file())

    def key(self, picture: Image.Image) -> str:
        """The digest of a picture for this encoder."""
        about = f"{self.context} {picture.mode} {picture.size} ".encode()
        return hashlib.sha256(about + picture.tobytes()).hexdigest()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under a key, or None."""
        found = self._read(key) if self.max_bytes else None
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors; a full or failing disk costs the entry alone."""
        rows = [tensors[name].contiguous().reshape(-1) for name in self.shapes]
        content = torch.cat(rows).view(torch.uint8).numpy().tobytes()
        size = len(content) + DIGEST_BYTES
        if self.bytes + size > self.max_bytes:
            return
        path = self._path(key)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(hashlib.sha256(content).digest() + content)
            aside.replace(path)
            self.bytes += size
        except OSError:
            aside.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _read(self, key: str) -> dict[str, Tensor] | None:
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        checksum, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        if len(content) != 2 * sum(sizes) or hashlib.sha256(content).digest() != checksum:
            return None
        parts = torch.frombuffer(bytearray(content), dtype=torch.half).split(sizes)
        shaped = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(shape) for (name, shape), part in shaped}
