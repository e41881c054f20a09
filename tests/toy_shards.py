"""A toy encoder and a build with it: real threads, files and processes, milliseconds per batch.

python tests/toy_shards.py build FOLDER [SECONDS PER BATCH]
python tests/toy_shards.py read FOLDER LEDGER EPOCHS [SECONDS PER SAMPLE]
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saccade.config.shards import EncodedSource, ShardsConfig, ShardSource
from saccade.data.shards.builder import Builder
from saccade.data.shards.puzzles import EncodedPuzzles
from saccade.data.shards.sources import open_sources
from saccade.training.batches import order_of

WIDTH = 3
CELL = 16


class ToyEncoder:
    """The mean colour of every cell."""

    digest = "toy"
    name = "toy"
    width = WIDTH
    alone = True

    def __init__(self, side: int, *, pause_s: float = 0.0) -> None:
        self.grid = (side // CELL, side // CELL)
        self.pause_s = pause_s
        self.encoded = 0

    def prepare(self, pictures: Sequence[Image.Image]) -> list[np.ndarray]:
        return [np.asarray(picture) for picture in pictures]

    def encode(self, prepared: Sequence[Any]) -> Tensor:
        time.sleep(self.pause_s)
        self.encoded += len(prepared)
        rows, columns = self.grid
        cells = torch.from_numpy(np.stack(prepared)).float()
        cells = cells.reshape(-1, rows, CELL, columns, CELL, 3).mean(dim=(2, 4))
        return cells.flatten(1, 2) / 255


def config(folder: Path, **changes: Any) -> ShardsConfig:
    plain: dict[str, Any] = {
        "path": folder, "side": 96, "batch_size": 4, "batches_per_shard": 5, "cache_gb": 0.1,
        "target_tokens": 32, "input_tokens": 32, "sources": [ShardSource(type="scenes", limit=70)],
        "drawers": 0,
    }  # fmt: skip
    return ShardsConfig(**(plain | changes))


def builder(settings: ShardsConfig, *, pause_s: float = 0.0) -> Builder:
    encoder = ToyEncoder(settings.side, pause_s=pause_s)
    return Builder(settings, mixture=open_sources(settings), encoder=encoder)


def encoded(folder: Path, **changes: Any) -> EncodedPuzzles:
    """The folder as a training reads it; waits for nobody unless told."""
    patience_s = changes.pop("patience_s", 0.0)
    source = EncodedSource(type="shards", path=folder, **changes)
    return EncodedPuzzles(source, patience_s=patience_s)


def digests(folder: Path) -> dict[str, str]:
    """What a finished build is: the content of its shards, its marks and its manifest."""
    files = sorted(
        [*folder.glob("*.safetensors"), folder / "manifest.json", folder / "held_out.bin"]
    )
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def read_with_ledger(folder: Path, ledger: Path, *, epochs: int, pause_s: float) -> None:
    """Note every sample's id; the list is saved in one step, and its length is the position."""
    source = encoded(folder, seed=5, patience_s=60.0)
    source.reader.poll_s = 0.02
    order = order_of(source, seed=0)
    state = ledger.with_suffix(".json")
    seen: list[str] = json.loads(state.read_text()) if state.exists() else []
    while len(seen) < epochs * len(source):
        (position,) = order.take(len(seen), 1)
        seen.append(source[position].id)
        time.sleep(pause_s)
        aside = state.with_suffix(".tmp")
        aside.write_text(json.dumps(seen))
        aside.replace(state)
    ledger.write_text("\n".join(seen))


def main(words: list[str]) -> None:
    verb, folder, *rest = words
    torch.set_num_threads(1)
    if verb == "build":
        pause_s = float(rest[0]) if rest else 0.0
        builder(config(Path(folder)), pause_s=pause_s).build()
    else:
        pause_s = float(rest[2]) if len(rest) > 2 else 0.0
        read_with_ledger(Path(folder), Path(rest[0]), epochs=int(rest[1]), pause_s=pause_s)


if __name__ == "__main__":
    main(sys.argv[1:])
