"""Draw a tree of nodes without a browser.

The same trees as the browser gets flow in, and the same things flow out: a PNG, the boxes of the
targets and an accessibility tree. `flow.py` says what lies where. Left out: shadows, and roles that
only a browser would work out.
"""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

from saccade.data.screens import icons
from saccade.data.screens.chromium import Seen
from saccade.data.screens.flow import LINE, Area, Flow, overlap
from saccade.data.screens.nodes import ROLES, Node

SPINNER = 48
"""Width of what turns while a page is waited for, pixels."""
PNG_EFFORT = 1
"""The fastest compression: a page is read once or twice."""


def draw(root: Node, *, font: str, wanted: int, loading: bool = False) -> Seen | None:
    """The page, or None where fewer than `wanted` targets can be seen in full.

    `root` has width and height; `font` is a list of families as in CSS.
    """
    size = (root.width or 0, root.height or 0)
    flow = Flow(font)
    placed = list(flow.placed(root, (0, 0, *size), clip=(0, 0, *size)))
    targets = {
        node.target: _edges(area)
        for node, area, clip in placed
        if node.target is not None and area == clip
    }
    if len(targets) < wanted:
        return None
    image = Image.new("RGB", size, root.fill or "#ffffff")
    pen = ImageDraw.Draw(image)
    for node, area, clip in placed:
        if clip[2] and clip[3]:
            _draw_block(image, pen, node, area, clip)
            if node.text and not node.ghost:
                _write(pen, flow, node, area, clip)
    tree = [
        (ROLES[node.tag], (node.name or node.text)[:160], _edges(clip))
        for node, _, clip in placed
        if node.tag in ROLES and not node.ghost and clip[2] and clip[3]
    ]
    if loading:
        tree.append(("progressbar", "loading", _draw_spinner(pen, size)))
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=PNG_EFFORT)
    return Seen(stream.getvalue(), targets, tree)


def _edges(area: Area) -> tuple[float, float, float, float]:
    left, top, width, height = area
    return float(left), float(top), float(left + width), float(top + height)


def _draw_block(
    image: Image.Image, pen: ImageDraw.ImageDraw, node: Node, area: Area, clip: Area
) -> None:
    """Ground, frame and icon of a node, cut to what shows of it."""
    left, top, right, bottom = clip[0], clip[1], clip[0] + clip[2] - 1, clip[1] + clip[3] - 1
    if node.ghost or node.fill or node.line:
        pen.rounded_rectangle(
            (left, top, right, bottom), radius=min(node.radius, (right - left) // 2),
            fill=node.ghost or node.fill or None, outline=node.line or None,
        )  # fmt: skip
    if node.icon is not None and not node.ghost and area == overlap(area, clip):
        tile = icons.tile(*node.icon, area[2])
        image.paste(tile, area[:2], tile)


def _write(pen: ImageDraw.ImageDraw, flow: Flow, node: Node, area: Area, clip: Area) -> None:
    """A node's lines of text, as far down as they show."""
    left, top, width, height = area
    font, step = flow.font(node), round(node.size * LINE)
    lines = flow.lines(node, width - 2 * node.pad[1])
    if node.centered:
        middle = (left + width / 2, top + height / 2)
        pen.text(middle, lines[0], font=font, fill=node.ink, anchor="mm")
        return
    start = top + node.pad[0]
    if node.tag == "input":
        start = top + (height - step) // 2
    for number, line in enumerate(lines):
        if start + (number + 1) * step > clip[1] + clip[3] + 2:
            break
        at = (left + node.pad[1], start + number * step + step // 2)
        pen.text(at, line, font=font, fill=node.ink, anchor="lm")


def _draw_spinner(
    pen: ImageDraw.ImageDraw, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    x, y, reach = size[0] / 2, size[1] / 2, min(SPINNER, *size) / 2
    box = (x - reach, y - reach, x + reach, y + reach)
    pen.arc(box, 0, 270, fill="#9aa0a6", width=6)
    return box
