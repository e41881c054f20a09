"""What is on a generated page and what is asked about it, before anything is drawn.

A page is a function of (seed, split, index): three to six groups of targets, each with its own
colour, side length and distinct shapes (or words), and the theme around them. `page_groups` says
what there is; `page_tree` lays it out among headings, paragraphs, inputs and links, a different way
on every attempt, plainer each time, so that a renderer can ask again until all targets show.
Left out: pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from saccade.config.screens import ScreensSource
from saccade.data.generate.drawing import COLORS, SHAPES
from saccade.data.generate.scenes import SPLIT_CODES, WORDS

VERSION = 2
"""Raised when the same settings would give other pages."""
FEWEST_GROUPS, MOST_GROUPS = 3, 6
FEWEST_MEMBERS, MOST_MEMBERS = 2, 4
TARGET_WORDS = tuple(word for word in WORDS if word not in SHAPES)
LETTER = 0.62
"""Height of a button's letters as a share of the button's height."""


@dataclass(frozen=True)
class Target:
    """One thing that can be asked for; `number` counts the targets of a page."""

    number: int
    group: int
    color: str
    shape: str = ""
    word: str = ""

    @property
    def element(self) -> str:
        """Kind of element, as benchmarks name it."""
        return "text" if self.word else "icon"

    @property
    def name(self) -> str:
        """What an accessibility tree calls it."""
        return self.word or f"{self.color} {self.shape}"

    @property
    def instruction(self) -> str:
        """What to do, in words that fit one target of the page only."""
        return f'Click "{self.word}".' if self.word else f"Click the {self.color} {self.shape}."


@dataclass(frozen=True)
class Group:
    """Targets of one colour and one side (of icons; height of buttons), side by side."""

    side: int
    gap: int
    small: bool
    targets: tuple[Target, ...]

    @property
    def width(self) -> int:
        """Pixels from the left edge of the first to the right edge of the last, at most."""
        widths = [
            button_width(target.word, self.side) if target.word else self.side
            for target in self.targets
        ]
        return sum(widths) + self.gap * (len(self.targets) - 1)


def button_width(word: str, side: int) -> int:
    """Width of a button of height `side` that holds `word` in any font."""
    return round(side * (0.8 + 0.75 * LETTER * len(word)))


def page_rng(source: ScreensSource, *, index: int, stream: int) -> np.random.Generator:
    """Random numbers of one page; `stream` 0 for what there is, 1.. for attempts to lay it out."""
    entropy = [source.seed, SPLIT_CODES[source.split], index, stream]
    return np.random.default_rng(np.random.SeedSequence(entropy))


def page_key(source: ScreensSource, *, index: int) -> str:
    """Name of the page, equal for all samples that show it."""
    return f"screens-{source.seed}-{source.split}-{index}"


def is_loading(source: ScreensSource, *, index: int) -> bool:
    """Whether the page is still loading when first seen."""
    share = page_rng(source, index=index, stream=2**16).random()
    return bool(share < source.loading_share)


def page_groups(source: ScreensSource, *, index: int) -> tuple[Group, ...]:
    """The groups of page `index`; equal arguments give equal groups on any machine.

    They fit the page: where they would not, the widest loses a member or becomes smaller, and in
    the end a group goes.
    """
    rng = page_rng(source, index=index, stream=0)
    count = int(rng.integers(FEWEST_GROUPS, MOST_GROUPS + 1))
    colors = [tuple(COLORS)[i] for i in rng.permutation(len(COLORS))]
    words = [TARGET_WORDS[i] for i in rng.permutation(len(TARGET_WORDS))]
    small = rng.random(count) < source.small_share
    drafts = [_draft(rng, source, color=colors[n], small=bool(small[n])) for n in range(count)]
    while True:
        groups = _numbered(source, drafts, words=words)
        if fits_plainly(groups, source):
            return groups
        widest = max(range(len(groups)), key=lambda n: groups[n].width)
        side, members = drafts[widest]
        if len(members) > FEWEST_MEMBERS:
            drafts[widest] = side, members[:-1]
        elif groups[widest].width > room_for_one(source):
            drafts[widest] = side - 1, members
        elif len(drafts) > 1:
            drafts.pop()
        else:
            return groups


def _draft(
    rng: np.random.Generator, source: ScreensSource, *, color: str, small: bool
) -> tuple[int, list[Target]]:
    low, high = (
        (source.min_target, source.small_target) if small
        else (source.least_large, source.max_target + 1)
    )  # fmt: skip
    side = int(low * (high / low) ** rng.random())
    kind = source.kinds[int(rng.integers(len(source.kinds)))]
    members = int(rng.integers(FEWEST_MEMBERS, MOST_MEMBERS + 1))
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:members]]
    if kind == "text":
        return side, [Target(0, 0, color, word="?") for _ in shapes]
    return side, [Target(0, 0, color, shape=shape) for shape in shapes]


def _numbered(
    source: ScreensSource, drafts: list[tuple[int, list[Target]]], *, words: list[str]
) -> tuple[Group, ...]:
    """Groups with their targets counted and the gaps that the page has room for."""
    groups, number = [], 0
    for place, (side, members) in enumerate(drafts):
        targets = []
        for member in members:
            word = words[number] if member.word else ""
            targets.append(replace(member, number=number, group=place, word=word))
            number += 1
        close = Group(side, 0, side < source.small_target, tuple(targets))
        # side by side on one page, whatever the configured gap
        most = (room_for_one(source) - close.width) // (len(targets) - 1)
        groups.append(replace(close, gap=max(1, min(round(source.gap * side), most))))
    return tuple(groups)


def room_for_one(source: ScreensSource) -> int:
    """Widest group that the plainest layout shows."""
    return source.width - 4 * margin(source)


def margin(source: ScreensSource) -> int:
    """Room around things in the plainest layout, pixels."""
    return max(2, round(min(source.width, source.height) / 60))


def packed(groups: list[Group], *, room: int, between: int) -> list[list[Group]]:
    """Rows of groups no wider than `room` with `between` pixels beside each, in order."""
    rows: list[list[Group]] = []
    used = room + 1
    for group in groups:
        if not rows or used + group.width + between > room:
            rows.append([])
            used = 0
        rows[-1].append(group)
        used += group.width + between
    return rows


def fits_plainly(groups: tuple[Group, ...], source: ScreensSource) -> bool:
    """Whether the plainest layout shows all groups, with a third of the height to spare."""
    between = 2 * margin(source)
    rows = packed(list(groups), room=source.width - between, between=between)
    if any(group.width > room_for_one(source) for group in groups):
        return False
    return sum(max(g.side for g in row) + 2 * between for row in rows) <= 0.7 * source.height


def asked(groups: tuple[Group, ...], *, most: int) -> list[Target]:
    """Up to `most` targets in the order they are asked for: one of each group in turn, and groups
    of small and of large targets in turn."""
    small = [group for group in groups if group.small]
    large = [group for group in groups if not group.small]
    order: list[Group] = []
    while small or large:
        order += [pile.pop(0) for pile in (small, large) if pile]
    turns = [
        group.targets[member]
        for member in range(MOST_MEMBERS)
        for group in order
        if member < len(group.targets)
    ]
    return turns[:most]
