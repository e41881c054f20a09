"""A screenshot that can be looked at again: zoom, inspect, wait, and the answer's place on it.

In go a picture and what a policy writes (numbers in its convention); out come pixels or a sentence
the policy can read. Numbers always refer to the latest picture shown, so crops of crops chain: each
`View` knows its box on the screenshot, and every place is carried back through it. Nothing a policy
writes raises here; it is refused, counted and answered with the reason. No tool is simulated:
`inspect` reads the page's own accessibility tree, `wait` shows a page that had not finished loading
when it was first seen, and both are refused or say so where there is nothing to know. Left out:
text to calls (`messages.py`), tokens (`dialogue.py`), what it is worth (`rewards.py`), any trainer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from saccade.config.grounding import GroundingConfig
from saccade.data.boxes import WHOLE, Box, Size
from saccade.grounding.coordinates import Convention, CoordinateError
from saccade.grounding.messages import Turn

MOST_LISTED = 20
"""Elements of the accessibility tree that one `inspect` lists."""

Fit = Callable[[Size], Size]
"""From the size of a picture to the size at which the processor shows it to the model."""


@dataclass(frozen=True)
class View:
    """One picture shown: its box on the screenshot, its pixels, its size as the model sees it.

    `loading`: it shows the page before it had finished loading.
    """

    box: Box
    image: Image.Image
    size: Size
    loading: bool = False

    @property
    def pixels(self) -> int:
        """Area as the model sees it."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True)
class ToolCall:
    """A call that was made: what was asked, what came of it and what it cost in pixels."""

    name: str
    arguments: Mapping[str, Any]
    ok: bool
    problem: str = ""
    view: View | None = None
    pixels: int = 0
    text: str = ""


@dataclass(frozen=True)
class ToolResult:
    """What the policy gets back: a text, a picture, or both."""

    text: str
    view: View | None
    ok: bool


@dataclass(frozen=True)
class Answer:
    """A place on the SCREENSHOT in shares of its sides; a box is clicked in its middle."""

    point: tuple[float, float]
    box: Box | None = None
    stated: float | None = None


class Refusal(Exception):
    """A call that is not done; the message is the answer to the policy."""


def most_calls(config: GroundingConfig) -> int:
    """Calls, valid or not, after which an episode is over its turns: one mistake is forgiven."""
    return config.zoom.calls + sum(name != "zoom" for name in config.tools) + 1


@dataclass
class Screen:
    """One screenshot of one episode, and everything that was seen of it.

    `tree` are the elements of the page (`role`, `name`, `box` in shares); `loaded` is the page
    after loading, where `image` shows it before, and `loading_tree` what it consists of until then.
    `fit_zoom` is the processor's resize of a crop
    where that differs from the first picture's.
    """

    image: Image.Image
    config: GroundingConfig
    convention: Convention
    fit: Fit
    tree: Sequence[Mapping[str, Any]] = ()
    loaded: Image.Image | None = None
    fit_zoom: Fit | None = None
    loading_tree: Sequence[Mapping[str, Any]] = ()
    views: list[View] = field(default_factory=list, init=False)
    calls: list[ToolCall] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        size = self.fit(self.image.size)
        self.views.append(View(WHOLE, self.image, size, loading=self.loaded is not None))

    @property
    def view(self) -> View:
        """The latest picture shown: the one that numbers refer to."""
        return self.views[-1]

    @property
    def pixels(self) -> int:
        """Area of all pictures shown, as the model sees them."""
        return sum(view.pixels for view in self.views)

    @property
    def zooms(self) -> int:
        """Crops that were shown."""
        return sum(call.ok and call.name == "zoom" for call in self.calls)

    @property
    def over(self) -> bool:
        """Whether more calls were made than an episode may make."""
        return len(self.calls) > most_calls(self.config)

    def take(self, turn: Turn) -> ToolResult:
        """Do what a turn that calls a tool asks for; a broken call is told why it is broken."""
        call = turn.call
        if turn.kind != "call" or call is None:
            raise ValueError("the turn calls no tool")
        if call.problem:
            # each of several calls in one turn is one that was made, and has its price
            made = ToolCall(call.name, call.arguments, ok=False, problem=call.problem)
            self.calls.extend([made] * max(1, turn.calls))
            return ToolResult(_error(call.problem), view=None, ok=False)
        return self.call(call.name, call.arguments)

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one call. What cannot be done is refused with a text and counted; nothing raises."""
        try:
            view, text = self._run(name, arguments)
        except (Refusal, CoordinateError) as error:
            self.calls.append(ToolCall(name, dict(arguments), ok=False, problem=str(error)))
            return ToolResult(_error(str(error)), view=None, ok=False)
        pixels = view.pixels if view else 0
        done = ToolCall(name, dict(arguments), ok=True, view=view, pixels=pixels, text=text)
        self.calls.append(done)
        if view is not None:
            self.views.append(view)
        return ToolResult(text, view=view, ok=True)

    def zoom(self, box: Sequence[float]) -> ToolResult:
        """Show a part of the latest picture enlarged; `box` = [left, top, right, bottom]."""
        return self.call("zoom", {"box": list(box)})

    def inspect(self, box: Sequence[float]) -> ToolResult:
        """List the elements of the accessibility tree in a part of the latest picture."""
        return self.call("inspect", {"box": list(box)})

    def wait(self) -> ToolResult:
        """Let a page that is still loading finish, and show it."""
        return self.call("wait", {})

    def answer(self, numbers: Sequence[float], *, stated: float | None = None) -> Answer:
        """The place on the screenshot that numbers on the latest picture name.

        Raises CoordinateError where they name none.
        """
        return place_on(self.view.box, numbers, size=self.view.size,
                        convention=self.convention, stated=stated)  # fmt: skip

    def numbers(self, values: Sequence[float]) -> list[float] | list[int]:
        """A point or a box of the screenshot as the numbers a policy would write now."""
        return self.convention.numbers(self._seen(values), size=self.view.size)

    def write(self, values: Sequence[float]) -> str:
        """The same as text: `[12, 34, 56, 78]`."""
        return self.convention.write(self._seen(values), size=self.view.size)

    def _seen(self, values: Sequence[float]) -> tuple[float, ...]:
        if len(values) == 4:
            return tuple(Box(*values).seen_in(self.view.box))
        x, y = values
        return tuple(Box(x, y, x, y).seen_in(self.view.box)[:2])

    def _run(self, name: str, arguments: Mapping[str, Any]) -> tuple[View | None, str]:
        offered = self.config.tools
        if name not in offered:
            raise Refusal(f"there is no tool {name[:40]!r}: {', '.join(offered) or 'answer now'}")
        if len(self.calls) >= most_calls(self.config):
            raise Refusal("no calls left: answer now")
        if name == "wait":
            if arguments:
                raise Refusal("wait takes no arguments")
            return self._wait()
        shares = self.convention.read(_box_argument(name, arguments), size=self.view.size)
        return self._zoom(Box(*shares)) if name == "zoom" else self._inspect(Box(*shares))

    def _zoom(self, asked: Box) -> tuple[View, str]:
        zoom = self.config.zoom
        if self.zooms >= zoom.calls:
            raise Refusal("no zoom left: answer now")
        parent = self.view.box
        width, height = self._page.size
        wide, high = asked.width * parent.width * width, asked.height * parent.height * height
        if max(wide, high) > zoom.max_aspect * min(wide, high):
            raise Refusal(f"the box is more than {zoom.max_aspect:g} times longer than it is wide")
        across = zoom.min_side / (parent.width * width)
        down = zoom.min_side / (parent.height * height)
        # the second is a picture as small as a crop may be: it would only be shown again
        if max(across, down) > 1 + 1e-9 or min(across, down) > 1 - 1e-9:
            raise Refusal("the picture is too small to enlarge a part of it: answer now")
        left, right = _widened(asked.left, asked.right, least=min(max(zoom.window, across), 1.0))
        top, bottom = _widened(asked.top, asked.bottom, least=min(max(zoom.window, down), 1.0))
        return self._crop(Box(left, top, right, bottom).inside(parent)), ""

    def _crop(self, box: Box) -> View:
        """Cut whole pixels, so that the view's box is exactly what is shown, and enlarge them."""
        width, height = self._page.size
        left, top, right, bottom = (math.floor(e + 0.5) for e in box.pixels((width, height)))
        left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
        right, bottom = min(max(right, left + 1), width), min(max(bottom, top + 1), height)
        scale = math.sqrt(self.config.zoom.pixels / ((right - left) * (bottom - top)))
        wanted = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
        size = (self.fit_zoom or self.fit)(wanted)
        # resized to the model's size at once: the processor then has nothing left to resample
        image = self._page.crop((left, top, right, bottom)).resize(size, Image.Resampling.LANCZOS)
        box = Box.from_pixels(left, top, right, bottom, size=(width, height))
        return View(box, image, size, loading=self.loading)

    def _inspect(self, asked: Box) -> tuple[None, str]:
        tree = self.loading_tree if self.loading else self.tree
        if not (self.tree or tree):
            raise Refusal("this page has no accessibility tree")
        area = asked.inside(self.view.box)
        found = [one for one in tree if area.contains(*Box(*one["box"]).center)]
        lines = [
            f"{one['role']} {json.dumps(one['name'], ensure_ascii=False)} {self.write(one['box'])}"
            for one in found[:MOST_LISTED]
        ]
        if len(found) > MOST_LISTED:
            lines.append(f"and {len(found) - MOST_LISTED} more")
        return None, "\n".join(lines) or "nothing is here"

    def _wait(self) -> tuple[View | None, str]:
        if self.loaded is None or not self.loading:
            return None, "nothing changed"
        return View(WHOLE, self.loaded, self.fit(self.loaded.size)), ""

    @property
    def loading(self) -> bool:
        """Whether the page has still to be waited for."""
        waited = any(call.ok and call.name == "wait" and call.view for call in self.calls)
        return self.loaded is not None and not waited

    @property
    def _page(self) -> Image.Image:
        """The page as it stands: loaded once it was waited for."""
        return self.image if self.loaded is None or self.loading else self.loaded


def place_on(
    seen: Box,
    numbers: Sequence[float],
    *,
    size: Size,
    convention: Convention,
    stated: float | None = None,
) -> Answer:
    """Carry numbers on a view (its box on the screenshot, its size as shown) to the screenshot.

    Raises CoordinateError where they are no place of the convention.
    """
    shares = convention.read(numbers, size=size)
    if len(shares) == 4:
        box = Box(*shares).inside(seen)
        return Answer(point=box.center, box=box, stated=stated)
    x, y = shares
    on_screen = Box(x, y, x, y).inside(seen)
    return Answer(point=(on_screen.left, on_screen.top), stated=stated)


def _box_argument(name: str, arguments: Mapping[str, Any]) -> list[float]:
    if set(arguments) != {"box"}:
        raise Refusal(f"{name} takes one argument, box: [left, top, right, bottom]")
    box = arguments["box"]
    numbers = isinstance(box, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in box
    )
    if not numbers or len(box) != 4:
        raise Refusal("box is a list of 4 numbers: [left, top, right, bottom]")
    # an integer of a thousand digits has no float
    return [float(one) if abs(one) < 1e9 else math.inf for one in box]


def _widened(low: float, high: float, *, least: float) -> tuple[float, float]:
    """At least `least` wide about the same middle, shifted to lie in 0..1."""
    if high - low >= least:
        return low, high
    start = min(max((low + high) / 2 - least / 2, 0.0), 1.0 - least)
    return start, start + least


def _error(problem: str) -> str:
    return f"error: {problem}"
