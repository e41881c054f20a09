"""The configuration of encoded shards: what is drawn, which encoder sees it, what is kept.

Part of `schema.py`. Imports pydantic only. Read by `saccade data build shards` and by whatever
trains on shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from saccade.config.nodes import Node, NonNegative, NonNegativeInt

WITHOUT_FILES = ("scenes",)


class ShardSource(Node):
    type: Literal["scenes", "grids", "stories", "code", "texts", "images"]
    """What is drawn: generated scenes, puzzles, or text and pictures from files."""
    path: Path | None = None
    """File or folder: ARC tasks or a CSV of puzzles (`grids`), a text file split by `<|endoftext|>`
    (`stories`), source files (`code`), text files (`texts`), pictures (`images`)."""
    limit: PositiveInt | None = None
    """Use only this many samples; scenes, which never end, default to 12000."""
    augmentations: NonNegativeInt = 0
    """Variants of each task besides the task itself (`grids` of ARC layout)."""
    seed: NonNegativeInt = 0
    """Seed of scenes and of the variants."""

    @model_validator(mode="after")
    def _files_are_named(self) -> ShardSource:
        if self.path is None and self.type not in WITHOUT_FILES:
            raise ValueError(f"type={self.type} needs a path: the file or folder to read")
        if self.path is not None and self.type in WITHOUT_FILES:
            raise ValueError(f"type={self.type} is generated and takes no path")
        return self


class ShardsConfig(Node):
    """Samples drawn as pictures and encoded once by a frozen vision tower, `model.name`'s."""

    path: Path = Path("shards")
    """Folder of the shards."""
    sources: list[ShardSource] = []
    """What is encoded, mixed evenly: each with type, path, limit, augmentations and seed; empty =
    generated scenes."""
    side: PositiveInt = 160
    """Side of the pictures in pixels; a multiple of the encoder's cell."""
    text_pixels: Annotated[int, Field(ge=6)] = 11
    """Size of the letters of text and code."""
    capsules: PositiveInt = 12
    """Capsules per picture."""
    children: NonNegativeInt = 4
    """Finer capsules kept below each capsule (a square number; 0 = none)."""
    keep_tokens: bool = False
    """Also keep every feature of the tower, for a pooling that is learned."""
    input_tokens: PositiveInt = 512
    """Most symbols kept of what a picture shows (bytes of text; grids have one per cell)."""
    target_tokens: PositiveInt = 128
    """Most symbols asked for: the bytes after a page of text, a caption (grids: one per cell)."""
    batch_size: PositiveInt = 8
    """Samples per batch file; a kill costs at most one batch."""
    batches_per_shard: PositiveInt = 100
    """Batch files that become one consolidated shard; training starts after the first shard."""
    queue_batches: PositiveInt = 4
    """Batches drawn ahead of the encoder (by each drawer): the bound on memory."""
    drawers: NonNegativeInt = 1
    """Processes that draw ahead of the encoder; 0 = a thread, which starts at once, but takes turns
    with a small encoder."""
    cache_gb: NonNegative = 5.0
    """Most the cache of encoded pictures beside the shards may hold in GB; 0 = none."""
    untrained_encoder: bool = False
    """Allow an encoder whose weights are random (its capsules mean nothing)."""

    @model_validator(mode="after")
    def _children_tile_a_capsule(self) -> ShardsConfig:
        if round(self.children**0.5) ** 2 != self.children:
            raise ValueError(f"children={self.children}: must be a square number, such as 4, or 0")
        return self

    def drawn(self) -> tuple[ShardSource, ...]:
        """The sources, or the one that needs no files."""
        return tuple(self.sources) or (ShardSource(type="scenes"),)


class EncodedSource(Node):
    """Samples of a shard folder (`saccade data build shards`): capsules in, symbols asked for."""

    type: Literal["shards"]
    """Kind of source."""
    path: Path = Path("shards")
    """The folder."""
    split: Literal["train", "test"] = "train"
    """A tenth of the scenes, tasks, documents and pictures is held out for `test`, with all their
    variants and pages."""
    symbols: bool = False
    """Read the question's symbols, too, beside the picture; grids cannot be answered without."""
    seed: NonNegativeInt = 0
    """Seed of the order: of samples within a shard, and of shards from the second epoch on."""
