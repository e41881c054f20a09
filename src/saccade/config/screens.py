"""The configuration of screenshots: generated pages, benchmarks and built parquet files.

Part of `schema_data.py`. Imports pydantic only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from saccade.config.nodes import Node, NonNegative, NonNegativeInt

BoxMeaning = Literal["auto", "xywh", "xyxy"]
"""What four numbers of a box are; `auto` is the format's own habit."""


class ScreensSource(Node):
    """Generated pages and what to click on them; boxes are read off the pages' own elements."""

    type: Literal["screens"]
    """Kind of source."""
    split: Literal["train", "validation", "test"] = "train"
    """Disjoint streams of pages: the same index in another split is another page."""
    screens: PositiveInt = 800
    """Number of pages."""
    targets: PositiveInt = 8
    """Most things asked for per page, small and large ones in turn."""
    renderer: Literal["auto", "chromium", "drawn"] = "auto"
    """Who draws the pages: headless Chromium, our own plain drawing, or `auto` = Chromium where it
    is installed."""
    width: Annotated[int, Field(ge=128)] = 800
    """Width of a page in pixels."""
    height: Annotated[int, Field(ge=128)] = 800
    """Height of a page in pixels."""
    min_target: Annotated[int, Field(ge=6)] = 24
    """Side of the smallest targets in pixels."""
    small_target: PositiveInt = 56
    """Sides below this many pixels are small; they are log-uniform from `min_target` up to it."""
    large_target: PositiveInt | None = None
    """Side of the smallest target that is not small; none = `small_target`, without a gap."""
    max_target: PositiveInt = 192
    """Side of the largest targets in pixels; sides are log-uniform from `large_target` up to it."""
    small_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    """Share of the groups of targets that are small."""
    gap: NonNegative = 0.6
    """Room between the things of a group, as a multiple of their side."""
    kinds: Annotated[list[Literal["icon", "text"]], Field(min_length=1)] = ["icon"]
    """What targets are: icons (a coloured shape) or text (a button with a word on it)."""
    answer: Literal["none", "point", "box"] = "none"
    """Also give the place as text in thousandths of the sides, `[512, 388]`, for recipes that learn
    answers (let them write it out: eval.max_new_tokens=24)."""
    loading_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the pages that are still loading when first seen (what `wait` is for)."""
    seed: NonNegativeInt = 0
    """Seed of the stream of pages."""
    cache: Path | None = None
    """Folder of pages drawn already; default: `saccade/screens` in the user's cache folder."""

    @property
    def least_large(self) -> int:
        """Side of the smallest target that is not small."""
        return self.small_target if self.large_target is None else self.large_target

    @model_validator(mode="after")
    def _sides_are_in_order(self) -> ScreensSource:
        least = self.least_large
        if not self.min_target < self.small_target <= least < self.max_target:
            raise ValueError(
                f"min_target={self.min_target} < small_target={self.small_target} <="
                f" large_target={least} < max_target={self.max_target} does not hold"
            )
        if 4 * self.max_target > min(self.width, self.height):
            raise ValueError(
                f"max_target={self.max_target} is more than a quarter of a page of"
                f" {self.width} x {self.height}"
            )
        return self


class ScreenSpotSource(Node):
    """Screenshots with one box per instruction, in a layout of the ScreenSpot family."""

    type: Literal["screenspot"]
    """Kind of source."""
    path: Path
    """Folder with annotation files and pictures, or one annotation file (.json, .jsonl)."""
    images: Path | None = None
    """Folder of the pictures; default: searched below `path`."""
    layout: Literal["auto", "v1", "v2", "pro", "points"] = "auto"
    """ScreenSpot v1, v2, Pro, or `points` = rows with a click point and no box (ScreenAgent)."""
    boxes: BoxMeaning = "auto"
    """Convention of `bbox`; `auto` is the layout's own, and a file that contradicts it is refused.
    """
    platforms: list[str] = []
    """Only these platforms; empty = all."""
    allow_benchmark: bool = False
    """Train on them even where they are a public benchmark's test rows, which then measure nothing
    any more."""
    limit: PositiveInt | None = None
    """Use only the first rows."""


class GroundingFilesSource(Node):
    """Rows that `saccade data build grounding` wrote."""

    type: Literal["grounding"]
    """Kind of source."""
    path: Path
    """The built folder, or one of its .parquet files."""
    split: Literal["train", "validation", "test"] = "train"
    """Which file of the folder."""
    limit: PositiveInt | None = None
    """Use only the first rows."""
