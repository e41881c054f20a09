"""Keep what a frozen vision tower says about an image on disk, across epochs and runs.

In go an image's patch rows and a function that computes tensors from them; out come those tensors,
computed once and read back bit for bit afterwards. An entry's name is the SHA-256 of the pixels,
the grid and everything else the numbers depend on (the tower's weights, number formats, versions,
the source that computes the textures), so another base or an updated library is another entry,
never a wrong hit. Each image is computed alone: an entry does not depend on its neighbours in the
batch. Entries are safetensors files with a checksum inside, written aside and renamed; a damaged
one is removed and computed again. The folder never holds more bytes than allowed: the least
recently used entries go first. Any number of processes may share it. Left out: decoding images
(the pixels are the key), and features of a part of an image (they depend on the question).

Shapes: N patches of one image, D patch values, J images.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import transformers
from torch import Tensor

from saccade.config.errors import OutsideError
from saccade.models.relevance import textures

FORMAT = 1
SUFFIX = ".safetensors"
LOCK = ".lock"
TOTAL = ".bytes"
ROOM = 0.9
"""Share of the bound that an eviction leaves filled, so that not every write evicts."""
LEFTOVER_SECONDS = 3600.0
"""Age at which a file written aside must belong to a process that was killed."""
TOTAL_BYTES = 8
"""The total is kept as one little-endian number of this many bytes."""
HEADER_BYTES = 8
"""A safetensors file begins with the length of its header in this many bytes."""

log = logging.getLogger(__name__)
Tensors = dict[str, Tensor]


@dataclass
class Counts:
    """What a store has done in this process."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    evicted: int = 0
    refused: int = 0


class TensorStore:
    """A folder of named tensor groups that never grows beyond `max_bytes`."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder.expanduser()
        self.max_bytes = max_bytes
        self.counts = Counts()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._write_total(self._make_room(0))
        except OSError as error:
            raise OutsideError(
                f"selector.feature_cache={folder}: cannot be written ({error.strerror or error})"
                "\n  fix: free or unlock the folder, choose another one, or leave the key out"
            ) from error

    def get(self, key: str) -> Tensors | None:
        """The tensors stored under a key, verified; None when absent or damaged."""
        path = self._path(key)
        found = _read(path, key=key)
        if isinstance(found, str):
            self.counts.damaged += 1
            log.warning("%s: %s; it is computed again", path, found)
            path.unlink(missing_ok=True)
            found = None
        if found is None:
            self.counts.misses += 1
            return None
        self.counts.hits += 1
        with suppress(OSError):  # evicted by another process a moment ago: what was read is good
            os.utime(path)
        return found

    def put(self, key: str, tensors: Tensors) -> None:
        """Store tensors; a full or failing disk costs the entry, not the run."""
        plain = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
        # one value, because safetensors writes several in any order, and equal is equal in bytes
        about = json.dumps({"key": key, "sha256": _checksum(plain)})
        content = safetensors.torch.save(plain, metadata={"saccade": about})
        if len(content) > self.max_bytes:
            self.counts.refused += 1
            return
        path = self._path(key)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            aside.write_bytes(content)
            with self._locked():
                total = self._read_total()
                if not path.exists():
                    total += len(content)
                if total > self.max_bytes:
                    total = self._make_room(len(content)) + len(content)
                # counted before it exists: a kill in between overstates, and the next scan mends it
                self._write_total(total)
                aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            self.counts.refused += 1
            if self.counts.refused == 1:
                log.warning("%s: cannot store features (%s)", self.folder, error.strerror or error)

    def bytes_used(self) -> int:
        """Bytes of all entries, counted on disk."""
        return sum(size for _, size, _ in self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read_total(self) -> int:
        try:
            content = (self.folder / TOTAL).read_bytes()
        except FileNotFoundError:
            content = b""
        if len(content) != TOTAL_BYTES:
            return self.bytes_used()
        return int.from_bytes(content, "little")

    def _write_total(self, total: int) -> None:
        (self.folder / TOTAL).write_bytes(total.to_bytes(TOTAL_BYTES, "little"))

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every entry."""
        found = []
        with os.scandir(self.folder) as scan:
            for one in scan:
                if one.name.endswith(SUFFIX):
                    with suppress(FileNotFoundError):
                        stat = one.stat()
                        found.append((stat.st_mtime, stat.st_size, Path(one.path)))
        return found

    def _make_room(self, needed: int) -> int:
        """Remove leftovers and, beyond the bound, the entries unused for longest.

        Returns the bytes that stay; call it with the lock held.
        """
        for path in self.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink()
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        if total + needed <= self.max_bytes:
            return total
        for _, size, path in entries:
            if total + needed <= ROOM * self.max_bytes or total == 0:
                break
            path.unlink(missing_ok=True)
            total -= size
            self.counts.evicted += 1
        return total


def _read(path: Path, *, key: str) -> Tensors | str | None:
    """Tensors, what is wrong with the entry, or None when there is none."""
    try:
        # read as a whole: a mapped file could still change after its checksum was found good
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        header = int.from_bytes(content[:HEADER_BYTES], "little")
        metadata = json.loads(content[HEADER_BYTES : HEADER_BYTES + header])["__metadata__"]
        about = json.loads(metadata["saccade"])
    except FileNotFoundError:
        return None
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        return f"unreadable ({error})"
    if about.get("key") != key:
        return "holds the features of another image"
    if about.get("sha256") != _checksum(tensors):
        return "differs from its checksum"
    return tensors


def _checksum(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        one = tensors[name]
        digest.update(f"{name} {one.dtype} {tuple(one.shape)} ".encode())
        digest.update(_bytes_of(one))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    # by way of bytes, because numpy has no bfloat16
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class FeatureCache:
    """Features of single images in a store, named by their pixels and all they depend on."""

    def __init__(self, store: TensorStore, *, base: Any, layout: textures.PatchLayout) -> None:
        self.store = store
        # now, while the weights are whole: they may be sharded over processes later
        self.context = _context(base, layout)

    @property
    def counts(self) -> Counts:
        return self.store.counts

    def digests(self, pixels_ND: Tensor, grid_J3: Tensor) -> list[str]:
        """What an image's entries are named after, beside the arithmetic in force later."""
        digests = []
        grids = grid_J3.tolist()
        for rows_ND, thw in zip(pixels_ND.split(grid_J3.prod(-1).tolist()), grids, strict=True):
            digest = hashlib.sha256(self.context.encode())
            digest.update(f" {thw} {rows_ND.dtype} {tuple(rows_ND.shape)} ".encode())
            digest.update(_bytes_of(rows_ND))
            digests.append(digest.hexdigest())
        return digests

    def remember(
        self,
        part: str,
        digests: Sequence[str],
        compute: Callable[[int], Tensors],
        *,
        device: torch.device,
    ) -> list[Tensors]:
        """`part` of each image: read back, or computed for this image alone and kept."""
        found, arithmetic = [], _arithmetic(device)
        for image, digest in enumerate(digests):
            key = f"{part}-{hashlib.sha256(f'{digest} {arithmetic}'.encode()).hexdigest()}"
            tensors = self.store.get(key)
            if tensors is None:
                tensors = compute(image)
                self.store.put(key, tensors)
            found.append({name: one.to(device) for name, one in tensors.items()})
        return found


def _context(base: Any, layout: textures.PatchLayout) -> str:
    """Everything features depend on beside the pixels, as one digest."""
    tower = base.model.visual
    digest = hashlib.sha256()
    about = (
        FORMAT, torch.__version__, transformers.__version__, tower.config.to_json_string(),
        str(tower.config._attn_implementation), layout,
    )  # fmt: skip
    digest.update(repr(about).encode())
    # an edited texture is another texture, whatever the version number says
    digest.update(Path(str(textures.__file__)).read_bytes())
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _arithmetic(device: torch.device) -> str:
    """What rounds differently: device, autocast, and on a CPU the number of threads."""
    kind = device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else "none"
    place = str(torch.get_num_threads()) if kind == "cpu" else torch.cuda.get_device_name(device)
    return f"{kind} {place} {cast}"
