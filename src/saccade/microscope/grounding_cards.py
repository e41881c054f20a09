"""Sample trajectories of a grounding run: what was asked, what was seen, written and clicked.

In go stored episodes and their screenshots; out comes HTML: the screenshot with target, windows of
the looks and the click, the pictures as the model saw them, and the text of every turn. Each
picture is embedded once as a style rule. Left out: choosing the episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from saccade.data.boxes import WHOLE, Box
from saccade.microscope import overlays
from saccade.microscope.markup import text

SCREEN_PX, SEEN_PX = 560, 384
"""Longest sides at which the screenshot and the pictures as seen are embedded."""
CROSS = 0.02
"""Half the length of a click's cross, in shares of the width."""
LONGEST_TURN = 600
"""Characters of a turn that are shown."""


@dataclass(frozen=True)
class Shown:
    """A stored episode and whether it was right; `kind` says whether it looked again, or
    tried to."""

    row: Mapping[str, Any]
    correct: bool
    image: Image.Image | None = None
    loading: Image.Image | None = None

    @property
    def id(self) -> str:
        return self.row["id"]

    @property
    def kind(self) -> str:
        if self.row["zooms"]:
            return "looked again"
        refused = any(not call["ok"] for call in self.row["calls"])
        return "look refused" if refused else "answered at once"


def trajectory_cards(shown: Sequence[Shown], *, prefix: str) -> tuple[str, str]:
    """HTML of the cards and the style rules that hold their pictures."""
    markup, rules = [], []
    for number, one in enumerate(shown):
        if one.image is None:
            continue
        frames, own = _frames(one, name=f"{prefix}{number}")
        rules += own
        markup.append(_card(one, frames))
    return f'<div class="cards">{"".join(markup)}</div>', "".join(rules)


def _card(one: Shown, frames: str) -> str:
    row = one.row
    word, mark, said = (
        ("good", "&#10003;", "in the target") if one.correct
        else ("bad", "&#10007;", "beside the target" if row["point"] else row["parse"])
    )  # fmt: skip
    sure = row["confidence"]
    values = [
        ("clicked", f'<b class="{word}">{text(said)} {mark}</b>'),
        ("target, first look", f"<b>{_side(row)}</b>"),
        ("probability of the answer", "<b>-</b>" if sure is None else f"<b>{100 * sure:.0f}%</b>"),
        ("pixels seen", f"<b>{row['pixels']:,}</b>"),
    ]
    answers = "".join(f"<div><span>{text(name)}</span>{value}</div>" for name, value in values)
    return (
        f'<article class="card"><span class="kind">{text(one.kind)}</span>'
        f"<h4>{text(row['instruction'])}</h4>"
        f'<div class="answers">{answers}</div><div class="looks">{frames}</div>{_turns(row)}'
        "</article>"
    )


def _side(row: Mapping[str, Any]) -> str:
    side = row["target_side"]
    return "a point" if side is None else f"{side:.1f} px"


def _turns(row: Mapping[str, Any]) -> str:
    """What the policy wrote, and what the screen said to it, in order."""
    calls = list(row["calls"])
    items = []
    for number, words in enumerate(row["turns"]):
        items.append(_said("policy", f"<code>{text(_short(words))}</code>"))
        if number < len(row["turns"]) - 1 and number < len(calls):
            call = calls[number]
            said = call.get("text") or ("a picture" if call["ok"] else call.get("problem", ""))
            items.append(_said("screen", f"<span>{text(_short(said))}</span>"))
    return f'<ol class="turns">{"".join(items)}</ol>'


def _said(who: str, words: str) -> str:
    return f'<li><span class="muted">{who}</span>{words}</li>'


def _short(words: str) -> str:
    return words if len(words) <= LONGEST_TURN else words[:LONGEST_TURN] + " ..."


def _frames(one: Shown, *, name: str) -> tuple[str, list[str]]:
    """The screenshot, then every picture as the model saw it."""
    image, row = one.image, one.row
    assert image is not None
    rules, frames = [], []
    windows = [Box(*view["box"]) for view in row["views"][1:]]
    marks = _outlines(row, within=WHOLE) + "".join(_path(one, "window") for one in windows)
    caption = "<b>screenshot</b> target white" + (", looks orange" if windows else "")
    rules.append(_rule(name, overlays.photo_uri(image, longest_px=SCREEN_PX)))
    frames.append(_frame(name, image.size, marks, caption + _click_words(row)))
    for number, view in enumerate(row["views"]):
        box, size = Box(*view["box"]), (int(view["size"][0]), int(view["size"][1]))
        page = one.loading if one.loading is not None and view.get("loading", not number) else image
        left, top, right, bottom = (round(edge) for edge in box.pixels(page.size))
        part = page.crop((left, top, right, bottom))
        seen = part.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        rules.append(_rule(f"{name}-{number}", _exact(seen)))
        title = "first look" if not number else f"look {number + 1}"
        caption = f"<b>{title}</b> {size[0]} x {size[1]}, as the model sees it"
        last = number == len(row["views"]) - 1
        marks = _outlines(row, within=box, click=last)
        frames.append(_frame(f"raw {name}-{number}", size, marks, caption))
    return "".join(frames), rules


def _exact(seen: Image.Image) -> str:
    """The pixels as they are; large ones scaled down as photographs."""
    small = max(seen.size) <= SEEN_PX
    return overlays.png_uri(seen) if small else overlays.photo_uri(seen, longest_px=SEEN_PX)


def _click_words(row: Mapping[str, Any]) -> str:
    return ", click pink" if row["point"] else ""


def _rule(name: str, uri: str) -> str:
    return f'.{name}{{background-image:url("{uri}")}}'


def _frame(names: str, size: tuple[int, int], marks: str, caption: str) -> str:
    return (
        f'<figure><div class="frame {names}" role="img" aria-label="{_plain(caption)}"'
        f' style="aspect-ratio:{size[0]}/{size[1]}">'
        '<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">'
        f"{marks}</svg></div><figcaption>{caption}</figcaption></figure>"
    )


def _plain(caption: str) -> str:
    return text(caption.replace("<b>", "").replace("</b>", ""))


def _outlines(row: Mapping[str, Any], *, within: Box, click: bool = True) -> str:
    """Target and click, in shares of the part of the screenshot that is shown."""
    marks = ""
    if row["target_box"] is not None:
        target = Box(*row["target_box"]).seen_in(within)
        marks += _path(target, "under") + _path(target, "")
    elif row["target_point"] is not None:
        marks += _cross(row["target_point"], within=within, name="under")
        marks += _cross(row["target_point"], within=within, name="")
    if click and row["point"] is not None:
        marks += _cross(row["point"], within=within, name="click")
    return marks


def _path(box: Box, name: str) -> str:
    left, top, right, bottom = (f"{edge:.5f}" for edge in box)
    return f'<path class="{name}" d="M{left} {top}H{right}V{bottom}H{left}Z"/>'


def _cross(point: Sequence[float], *, within: Box, name: str) -> str:
    x, y = Box(point[0], point[1], point[0], point[1]).seen_in(within)[:2]
    return (
        f'<path class="{name}" d="M{x - CROSS:.5f} {y:.5f}H{x + CROSS:.5f}'
        f'M{x:.5f} {y - CROSS:.5f}V{y + CROSS:.5f}"/>'
    )
