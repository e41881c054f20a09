"""Generated pages as a source of samples: draw what is missing, then read it.

A `ScreensSource` flows in; samples of kind `point` flow out, one per target that is asked for, with
the box read off the page's own element. Pages are drawn when first needed, by headless Chromium or
by our own drawing, and kept in a folder; `prepare` draws all of them beforehand. Left out: real
screenshots (`screenspot.py`).
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from saccade.config.errors import InputError
from saccade.config.screens import ScreensSource
from saccade.data.samples import Sample
from saccade.data.screens import drawn
from saccade.data.screens.cache import PageCache, default_cache
from saccade.data.screens.chromium import FIX, Chromium, Seen, find_chromium
from saccade.data.screens.html import page_html
from saccade.data.screens.layouts import LAYOUTS, Builder, plain
from saccade.data.screens.nodes import Node, as_ghost
from saccade.data.screens.pages import (
    VERSION,
    Group,
    asked,
    is_loading,
    page_groups,
    page_key,
    page_rng,
)
from saccade.data.screens.themes import Theme, draw_theme

ATTEMPTS = 8
"""Layouts that are tried before the plainest one."""
KEPT_ROWS = 256
"""Pages whose facts stay in memory."""
NOT_DRAWN = {"cache", "screens", "targets", "answer"}
"""Keys of a source that change nothing on a page."""


def page_tree(
    source: ScreensSource, *, index: int, groups: tuple[Group, ...], attempt: int
) -> tuple[Node, Theme]:
    """A layout of the page: another one per attempt, with less and less beside the targets."""
    rng = page_rng(source, index=index, stream=1 + attempt)
    size = (source.width, source.height)
    theme = draw_theme(rng, width=size[0], height=size[1])
    make = Builder(rng, theme, size=size, clutter=max(0.0, 1.0 - attempt / (ATTEMPTS - 1)))
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    layout = LAYOUTS[int(rng.integers(len(LAYOUTS)))] if attempt < ATTEMPTS else plain
    return layout(make, shuffled), theme


def renderer_of(source: ScreensSource) -> str:
    """Who draws: `chromium` or `drawn`; raises `InputError` where Chromium is asked for in vain."""
    if source.renderer == "drawn":
        return "drawn"
    if find_chromium() is not None:
        return "chromium"
    if source.renderer == "chromium":
        raise InputError(f"renderer: chromium, but there is no Chromium or no playwright\n{FIX}")
    return "drawn"


def place_answers(box: Sequence[float], *, form: str) -> tuple[str, ...]:
    """A box (in shares) as an answer: its middle or itself, in thousandths; a point that lies in
    the box is right as well, so the box follows the point."""
    if form == "none":
        return ()
    left, top, right, bottom = box
    thousandths = [round(1000 * edge) for edge in box]
    if form == "box":
        return (str(thousandths),)
    middle = [round(500 * (left + right)), round(500 * (top + bottom))]
    return str(middle), str(thousandths)


class GeneratedScreens:
    """Samples of one split's pages, page by page."""

    def __init__(self, source: ScreensSource) -> None:
        self.source = source
        self.renderer = renderer_of(source)
        folder = (source.cache or default_cache()).expanduser()
        self.cache = PageCache(folder / self._digest(leave_out=NOT_DRAWN))
        self._begin()

    def _begin(self) -> None:
        self._rows: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._last: tuple[int, list[Sample]] = (-1, [])
        self._lock = threading.Lock()
        self._browser = Chromium(width=self.source.width, height=self.source.height)

    def __getstate__(self) -> dict[str, Any]:
        # locks and browsers stay where they are
        return {name: value for name, value in vars(self).items() if name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @functools.cached_property
    def starts(self) -> list[int]:
        """Position of each page's first sample, and the number of all samples."""
        counts = (
            len(asked(page_groups(self.source, index=i), most=self.source.targets))
            for i in range(self.source.screens)
        )
        return [0, *accumulate(counts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        index = bisect.bisect_right(self.starts, position) - 1
        return self.page_samples(index)[position - self.starts[index]]

    def groups(self) -> list[list[int]]:
        """Positions of each page's samples."""
        starts = self.starts
        return [list(range(starts[i], starts[i + 1])) for i in range(self.source.screens)]

    def fingerprint(self) -> str:
        """Equal for equal pages and questions, whatever folder they are kept in."""
        silent = {"answer"} if self.source.answer == "none" else set[str]()
        return "screens:" + self._digest(leave_out={"cache"} | silent)

    def _digest(self, *, leave_out: set[str]) -> str:
        spec = self.source.model_dump(mode="json", exclude=leave_out | {"renderer"})
        text = json.dumps([VERSION, self.renderer, spec], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def page_samples(self, index: int) -> list[Sample]:
        """All samples of page `index`, sharing one picture; draws it if nobody has.

        The last page's are kept: what reads samples reads those of a page one after another.
        """
        with self._lock:
            last, samples = self._last
        if last != index:
            samples = self._page_samples(index)
            with self._lock:
                self._last = index, samples
        return samples

    def _page_samples(self, index: int) -> list[Sample]:
        row = self.page(index)
        key = page_key(self.source, index=index)
        size = (self.source.width, self.source.height)
        facts: dict[str, Any] = {
            "platform": "web", "size": size, "source": "generated", "tree": row["tree"],
        }  # fmt: skip
        if "loading_tree" in row:
            facts["loading"] = self.cache.picture(self._name(index), "loading")
            facts["loading_tree"] = row["loading_tree"]
        groups = page_groups(self.source, index=index)
        return [
            Sample(
                id=f"{key}-t{target.number}",
                question=target.instruction,
                answers=place_answers(row["boxes"][str(target.number)], form=self.source.answer),
                images=(self.cache.picture(self._name(index)),),
                kind="point",
                image_key=key,
                facts={**facts, "box": tuple(row["boxes"][str(target.number)]),
                       "element": target.element},
            )
            for target in asked(groups, most=self.source.targets)
        ]  # fmt: skip

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Draw every page that is missing; returns how many were.

        `progress` is told how many of how many pages are there.
        """
        made = 0
        for index in range(self.source.screens):
            if self.cache.read(self._name(index)) is None:
                self._draw(index)
                made += 1
            if progress is not None:
                progress(index + 1, self.source.screens)
        self.close()
        return made

    def close(self) -> None:
        """End the browser, if one was started; the next missing page starts another."""
        self._browser.close()

    def page(self, index: int) -> dict[str, Any]:
        """Boxes by target number and the tree, in shares of the page's sides."""
        with self._lock:
            row = self._rows.get(index)
        if row is None:
            row = self.cache.read(self._name(index)) or self._draw(index)
            with self._lock:
                self._rows[index] = row
                while len(self._rows) > KEPT_ROWS:
                    self._rows.popitem(last=False)
        return row

    def _name(self, index: int) -> str:
        return f"{self.source.split}-{index:06d}"

    def _draw(self, index: int) -> dict[str, Any]:
        groups = page_groups(self.source, index=index)
        wanted = sum(len(group.targets) for group in groups)
        for attempt in range(ATTEMPTS + 1):
            tree, theme = page_tree(self.source, index=index, groups=groups, attempt=attempt)
            seen = self._render(tree, theme, wanted=wanted, loading=False)
            if seen is not None:
                break
        else:
            raise InputError(
                f"{page_key(self.source, index=index)}: not all targets fit on a page of"
                f" {self.source.width} x {self.source.height}\n"
                "  fix: a larger page, or smaller targets (max_target)"
            )
        row: dict[str, Any] = {
            "boxes": {str(number): self._shares(box) for number, box in seen.targets.items()},
            "tree": self._tree(seen),
            "attempt": attempt,
        }
        pictures = {"page": seen.png}
        if is_loading(self.source, index=index):
            ghost = as_ghost(tree, theme.line)
            before = self._render(ghost, theme, wanted=0, loading=True)
            assert before is not None
            row["loading_tree"] = self._tree(before)
            pictures["loading"] = before.png
        self.cache.write(self._name(index), row, pictures=pictures)
        return row

    def _render(self, tree: Node, theme: Theme, *, wanted: int, loading: bool) -> Seen | None:
        if self.renderer == "drawn":
            return drawn.draw(tree, font=theme.font, wanted=wanted, loading=loading)
        html = page_html(tree, font=theme.font, loading=loading)
        return self._browser.draw(html, wanted=wanted)

    def _tree(self, seen: Seen) -> list[dict[str, Any]]:
        return [
            {"role": role, "name": name, "box": self._shares(box)} for role, name, box in seen.tree
        ]

    def _shares(self, box: tuple[float, float, float, float]) -> list[float]:
        sides = (self.source.width, self.source.height) * 2
        return [round(edge / side, 6) for edge, side in zip(box, sides, strict=True)]
