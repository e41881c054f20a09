"""Lay a page's groups of targets out among everything else a page has.

Groups and a random generator flow in, a tree of `Node`s flows out: one of several layouts (cards,
sidebar, list, table, form, toolbar, article, dialog) with headings, paragraphs, links and inputs
as clutter. Words of the clutter are never words of targets. `plain` is the layout of last resort:
only the groups, packed in rows. Left out: pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from saccade.data.generate.drawing import COLORS
from saccade.data.screens.nodes import Node
from saccade.data.screens.pages import LETTER, Group, Target, button_width, packed
from saccade.data.screens.themes import Theme, dimmed

NOUNS = (
    "report", "orders", "account", "summary", "settings", "invoice", "project", "members",
    "history", "status", "storage", "schedule", "customers", "billing", "activity", "archive",
    "campaign", "products", "shipping", "security", "overview", "messages", "library", "budget",
    "teams", "devices", "support", "releases", "insights", "training", "travel", "market",
)  # fmt: skip
VERBS = (
    "open", "review", "change", "share", "export", "compare", "confirm", "assign", "rename",
    "update", "send", "save", "apply", "cancel", "continue", "preview",
)  # fmt: skip
LITTLE = (
    "the", "a", "for", "and", "with", "of", "in", "this", "your", "from", "all", "by", "new",
    "last", "week", "today", "more", "most", "before", "after",
)  # fmt: skip
Piles = list[Group]


class Builder:
    """The parts of a page in one theme; every random choice comes from `rng`."""

    def __init__(
        self, rng: np.random.Generator, theme: Theme, *, size: tuple[int, int], clutter: float
    ) -> None:
        self.rng = rng
        self.theme = theme
        self.width, self.height = size
        self.clutter = clutter

    def chance(self, share: float) -> bool:
        """True with probability `share` times how cluttered the page may be."""
        return bool(self.rng.random() < share * self.clutter)

    def pick(self, things: tuple[str, ...]) -> str:
        return things[int(self.rng.integers(len(things)))]

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    # ---- words

    def title(self) -> str:
        return f"{self.pick(VERBS)} {self.pick(NOUNS)}".capitalize()

    def sentence(self) -> str:
        words = [
            self.pick((VERBS, NOUNS, LITTLE, LITTLE)[int(self.rng.integers(4))])
            for _ in range(self.between(5, 12))
        ]
        return " ".join(words).capitalize() + "."

    def heading(self, *, ink: str = "", tag: str = "h2") -> Node:
        size = round(self.theme.letter * (1.2 if tag == "h2" else 1.5))
        return Node(tag, self.title(), ink=ink or self.theme.ink, size=size, bold=True)

    def paragraph(self, sentences: int) -> Node:
        text = " ".join(self.sentence() for _ in range(sentences))
        return Node("p", text, ink=self.theme.muted, size=self.theme.letter, wrap=True)

    def link(self, *, ink: str = "") -> Node:
        word = self.pick(NOUNS).capitalize()
        return Node("a", word, ink=ink or self.theme.muted, size=self.theme.letter)

    def label(self, *, grow: float = 0.0, tag: str = "span") -> Node:
        text = f"{self.pick(NOUNS)} {self.between(1, 99)}".capitalize()
        return Node(tag, text, ink=self.theme.ink, size=self.theme.letter, grow=grow)

    # ---- controls

    def field(self, *, width: int | None = None) -> Node:
        theme = self.theme
        return Node(
            "input", self.title().lower(), ink=theme.muted, size=theme.letter, fill=theme.field,
            line=theme.line, radius=min(4, theme.radius), height=theme.letter + 2 * theme.space,
            pad=(0, max(2, theme.space // 2)), width=width, name=self.title(),
        )  # fmt: skip

    def check(self) -> Node:
        theme = self.theme
        side = theme.letter
        box = Node("check", width=side, height=side, line=theme.muted, fill=theme.field, radius=2)
        return Node(flow="row", gap=theme.space // 2, align="center", children=(box, self.label()))

    def plain_button(self) -> Node:
        theme = self.theme
        return Node(
            "button", self.pick(VERBS).capitalize(), ink=theme.ink, size=theme.letter,
            fill=theme.field, line=theme.line, radius=min(5, theme.radius), centered=True,
            height=theme.letter + 2 * theme.space, pad=(0, theme.space),
        )  # fmt: skip

    def avatar(self) -> Node:
        side = round(self.theme.letter * 1.8)
        return Node(
            "div", width=side, height=side, basis=side, fill=self.theme.line, radius=side // 2
        )

    # ---- targets

    def target(self, target: Target, group: Group) -> Node:
        side = group.side
        if not target.word:
            return Node(
                "button", width=side, height=side, icon=(target.shape, target.color),
                name=target.name, target=target.number,
            )  # fmt: skip
        red, green, blue = COLORS[target.color]
        bright = 0.3 * red + 0.6 * green + 0.1 * blue > 130
        return Node(
            "button", target.word, width=button_width(target.word, side), height=side,
            fill=f"#{red:02x}{green:02x}{blue:02x}", ink="#101010" if bright else "#ffffff",
            size=max(5, round(side * LETTER)), centered=True, radius=min(5, side // 5),
            name=target.name, target=target.number,
        )  # fmt: skip

    def group(self, group: Group) -> Node:
        """A group's targets side by side, as wide as they are."""
        members = tuple(self.target(target, group) for target in group.targets)
        return Node(flow="row", gap=group.gap, align="center", children=members)

    def placed(self, group: Group) -> Node:
        """The group left, right or in the middle of the room there is."""
        side = ("start", "center", "end")[int(self.rng.integers(3))]
        return Node(flow="row", justify=side, children=(self.group(group),))

    # ---- larger parts

    def card(self, group: Group | None, *, width: int, grow: float = 1.0) -> Node:
        """A panel with a group (or none) between a heading, sentences and a control."""
        theme = self.theme
        parts: list[Node] = []
        roomy = width > 9 * theme.letter
        if roomy and self.chance(0.75):
            parts.append(self.heading())
        if group is None or (roomy and self.chance(0.5)):
            parts.append(self.paragraph(self.between(1, 2)))
        if group is not None:
            parts.append(self.placed(group))
        if self.chance(0.2):
            parts.append(self.field())
        elif self.chance(0.25):
            parts.append(self.link())
        if len(parts) > 1 and self.chance(0.4):
            parts = [parts[i] for i in self.rng.permutation(len(parts))]
        return Node(
            "section", gap=theme.space, pad=(theme.space, theme.space), fill=theme.card,
            line=theme.line if theme.framed else "", shadow=theme.shadow, radius=theme.radius,
            basis=width, grow=grow, justify="center" if self.chance(0.3) else "start",
            children=tuple(parts),
        )  # fmt: skip

    def cards(self, groups: Piles, *, room: int) -> list[Node]:
        """Rows of cards, wide enough for their groups; some cards hold no target."""
        theme = self.theme
        rows = packed(groups, room=room, between=3 * theme.space)
        made = []
        for row in rows:
            children = [
                self.card(group, width=group.width + 2 * theme.space,
                          grow=float(self.rng.uniform(0.4, 1.6)))
                for group in row
            ]  # fmt: skip
            spare = room - sum((child.basis or 0) + theme.space for child in children)
            wide = 14 * theme.letter
            if spare > wide and self.chance(0.5):
                place = self.between(0, len(children))
                children.insert(place, self.card(None, width=wide))
            made.append(Node(flow="row", gap=theme.space, children=tuple(children)))
        return made

    def chart(self) -> Node:
        """A panel of grey bars that fills what is left of its column."""
        theme = self.theme
        count = self.between(5, 14)
        bars = tuple(
            Node(grow=1.0, height=self.between(8, 70) * theme.letter // 12, fill=theme.line)
            for _ in range(count)
        )
        plot = Node(flow="row", align="end", gap=theme.space, children=bars)
        return self.panel([self.heading(), plot])

    def table(self) -> Node:
        """Lines of words and numbers that fill what is left of their column."""
        lines = tuple(
            Node(flow="row", gap=self.theme.space,
                 children=(self.label(grow=2.0), self.label(grow=1.0), self.label(grow=1.0)))
            for _ in range(12)
        )  # fmt: skip
        return self.panel([self.heading(), *lines])

    def text(self) -> Node:
        """Paragraphs that fill what is left of their column."""
        return self.panel([self.heading(), self.paragraph(5), self.paragraph(6)])

    def panel(self, parts: list[Node]) -> Node:
        """A card without targets, as high as there is room."""
        theme = self.theme
        return Node(
            "section", gap=theme.space, pad=(theme.space, theme.space), fill=theme.card, grow=1.0,
            line=theme.line if theme.framed else "", radius=theme.radius, children=tuple(parts),
        )  # fmt: skip

    def filling(self) -> Node:
        """Something without targets that takes the room that is left."""
        return (self.chart, self.table, self.text)[self.between(0, 2)]()

    def footer(self) -> Node:
        """A bar of links at the end of the page."""
        theme = self.theme
        links = tuple(self.link(ink=theme.bar_ink) for _ in range(self.between(2, 5)))
        return Node(
            "footer", flow="row", gap=3 * theme.space, fill=theme.bar, line=theme.line,
            pad=(theme.space, 2 * theme.space), children=links,
            justify=("start", "center", "end", "between")[self.between(0, 3)],
        )  # fmt: skip

    def header(self, groups: Piles) -> Node:
        """The bar on top or below, with the groups that fit into it."""
        theme = self.theme
        parts = [self.heading(ink=theme.bar_ink, tag="h1")]
        if self.chance(0.6):
            links = tuple(self.link(ink=theme.bar_ink) for _ in range(self.between(2, 4)))
            parts.append(Node("nav", flow="row", gap=2 * theme.space, children=links))
        parts.append(Node(grow=1.0))
        parts += [self.on_card(group) for group in groups]
        return Node(
            "header", flow="row", align="center", gap=2 * theme.space, fill=theme.bar,
            pad=(theme.space, 2 * theme.space), line=theme.line, children=tuple(parts),
        )  # fmt: skip

    def on_card(self, group: Group) -> Node:
        """A group on a patch of card colour: bars may have a ground that hides a colour."""
        half = max(2, self.theme.space // 2)
        return Node(
            flow="row", pad=(half, half), fill=self.theme.card, radius=self.theme.radius,
            children=(self.group(group),),
        )  # fmt: skip

    def links(self, count: int) -> Node:
        """A list of links, one below the other."""
        items = tuple(Node("li", children=(self.link(),)) for _ in range(count))
        return Node("ul", gap=self.theme.space, children=items)

    def row(self, group: Group | None) -> Node:
        """A line of a list or table: something to tell it by, a label, a group at its end."""
        theme = self.theme
        label = self.label(grow=1.0)
        if self.chance(0.4):
            label = Node(
                grow=1.0, gap=2,
                children=(replace(label, grow=0.0), replace(self.link(), size=theme.letter - 1)),
            )  # fmt: skip
        parts = [self.avatar()] if self.chance(0.5) else []
        parts.append(label)
        if group is not None:
            parts.insert(self.between(0, len(parts)), self.group(group))
        return Node(
            "li", flow="row", align="center", gap=theme.space, fill=theme.card,
            pad=(max(2, theme.space // 2), theme.space), line=theme.line, children=tuple(parts),
        )  # fmt: skip

    def body(self, parts: list[Node], *, grow: float = 1.0, tag: str = "main") -> Node:
        """A column that fills what is left and spreads its parts one way or another."""
        how = ("start", "between", "center", "end")[int(self.rng.integers(4))]
        space = self.theme.space
        if tag == "main" and self.chance(0.65):
            parts = self.spread(parts, [self.filling()])
        return Node(
            tag, grow=grow, gap=space, pad=(space, space), justify=how, children=tuple(parts)
        )

    def page(self, parts: list[Node], *, flow: str = "column") -> Node:
        """The whole page; one that flows down may end in a footer."""
        if flow == "column" and self.chance(0.25):
            parts = [*parts, self.footer()]
        return Node(
            "div", flow="row" if flow == "row" else "column", fill=self.theme.ground,
            width=self.width, height=self.height, children=tuple(parts),
        )  # fmt: skip

    def spread(self, parts: list[Node], fillers: list[Node]) -> list[Node]:
        """Fillers put between the parts at random."""
        mixed = list(parts)
        for filler in fillers:
            mixed.insert(self.between(0, len(mixed)), filler)
        return mixed

    def few(self, groups: Piles, *, most: int, room: int, tall: int) -> tuple[Piles, Piles]:
        """Up to `most` of the groups that fit `room` x `tall` pixels, and the rest."""
        chosen: Piles = []
        for group in groups:
            if len(chosen) < most and group.width <= room and group.side <= tall:
                chosen.append(group)
                room -= group.width + 3 * self.theme.space
        return chosen, [group for group in groups if group not in chosen]


def plain(make: Builder, groups: Piles) -> Node:
    """Only the groups, in rows on one card: shows all of any page's groups."""
    margin = max(2, round(min(make.width, make.height) / 60))
    rows = [
        Node(flow="row", gap=2 * margin, justify="between", align="center",
             children=tuple(make.group(group) for group in row))
        for row in packed(groups, room=make.width - 2 * margin, between=2 * margin)
    ]  # fmt: skip
    return Node(
        "main", width=make.width, height=make.height, fill=make.theme.card, justify="between",
        pad=(margin, margin), children=tuple(rows),
    )  # fmt: skip


def dashboard(make: Builder, groups: Piles) -> Node:
    """Cards under (or above) a bar that may hold a small group."""
    top, rest = make.few(groups, most=make.between(0, 1), room=make.width // 3, tall=44)
    header = make.header(top)
    room = make.width - 2 * make.theme.space
    fillers = [make.paragraph(1)] if make.chance(0.3) else []
    body = make.body(make.spread(make.cards(rest, room=room), fillers))
    parts = [header, body]
    return make.page(parts[::-1] if make.chance(0.15) else parts)


def sidebar(make: Builder, groups: Piles) -> Node:
    """Links on one side, some with a group among them, cards on the other."""
    theme = make.theme
    wide = round(make.width * float(make.rng.uniform(0.16, 0.28)))
    aside, rest = make.few(groups, most=1, room=wide - 2 * theme.space, tall=64)
    parts = [make.heading(), make.links(make.between(3, 8))]
    if make.chance(0.5):
        parts += [make.heading(), make.links(make.between(2, 5))]
    parts = make.spread(parts, [make.placed(group) for group in aside])
    side = Node(
        "aside", basis=wide, gap=2 * theme.space, pad=(2 * theme.space, theme.space),
        fill=theme.card, line=theme.line, children=tuple(parts),
    )  # fmt: skip
    room = make.width - wide - 2 * theme.space
    fillers = [make.heading(tag="h1")] if make.chance(0.6) else []
    body = make.body(fillers + make.cards(rest, room=room))
    both = [side, body]
    return make.page(both[::-1] if make.chance(0.3) else both, flow="row")


def rows(make: Builder, groups: Piles) -> Node:
    """A list with a group in some of its lines."""
    filled = [make.row(group) for group in groups]
    empty = [make.row(None) for _ in range(make.between(0, round(6 * make.clutter)))]
    lines = Node("ul", gap=make.between(0, make.theme.space), children=tuple(
        make.spread(filled, empty)))  # fmt: skip
    head = [make.header([])] if make.chance(0.6) else []
    return make.page([*head, make.body([lines])])


def form(make: Builder, groups: Piles) -> Node:
    """Labelled inputs in one column, cards with groups in the other."""
    theme = make.theme
    widest = max(group.width for group in groups) + 2 * theme.space
    room = max(widest, round(make.width * float(make.rng.uniform(0.4, 0.62))))
    fields: list[Node] = []
    for _ in range(make.between(2, 2 + round(4 * make.clutter))):
        fields += [make.label(tag="label"), make.field()]
        if make.chance(0.3):
            fields.append(make.check())
    fields.append(Node(flow="row", gap=theme.space, children=(make.plain_button(),)))
    left = make.body([make.heading(tag="h1"), *fields], tag="form")
    cards = make.cards(groups, room=room - 2 * theme.space)
    right = replace(make.body(cards), grow=0.0, basis=room)
    parts = [left, right]
    columns = Node(flow="row", grow=1.0, children=tuple(parts[::-1] if make.chance(0.5) else parts))
    return make.page([make.header([]), columns] if make.chance(0.5) else [columns])


def toolbar(make: Builder, groups: Piles) -> Node:
    """Small groups in a strip, large ones in a document below or above it."""
    theme = make.theme
    strip, rest = make.few(groups, most=3, room=make.width - 8 * theme.space, tall=48)
    tools = [make.group(group) for group in strip]
    tools += [make.plain_button() for _ in range(make.between(0, 1))]
    order = [tools[i] for i in make.rng.permutation(len(tools))]
    bar = Node(
        flow="row", align="center", gap=2 * theme.space, fill=theme.card, line=theme.line,
        pad=(theme.space, theme.space), children=tuple(order),
        justify=("start", "center", "end", "between")[make.between(0, 2)],
    )  # fmt: skip
    room = make.width - 2 * theme.space
    fillers = [make.paragraph(make.between(1, 3)) for _ in range(round(2 * make.clutter))]
    body = make.body(make.spread(make.cards(rest, room=room), fillers))
    parts = [bar, body] if order else [body]
    if make.chance(0.3):
        parts.reverse()
    return make.page([make.header([]), *parts] if make.chance(0.4) else parts)


def article(make: Builder, groups: Piles) -> Node:
    """Text with groups between its paragraphs, and a column of links."""
    theme = make.theme
    rail = round(make.width * float(make.rng.uniform(0.14, 0.24))) if make.chance(0.6) else 0
    room = make.width - rail - 6 * theme.space
    lines = [
        Node(flow="row", gap=3 * theme.space, justify=("start", "center", "between")[
            make.between(0, 2)], align="center", children=tuple(make.group(g) for g in row))
        for row in packed(groups, room=room, between=3 * theme.space)
    ]  # fmt: skip
    texts = [make.paragraph(make.between(1, 3)) for _ in range(round(3 * make.clutter))]
    column = make.body([make.heading(tag="h1"), *make.spread(lines, texts)], tag="main")
    column = replace(column, fill=theme.card, pad=(theme.space, 3 * theme.space))
    if not rail:
        return make.page([column])
    links = Node("nav", basis=rail, pad=(theme.space, theme.space), gap=theme.space,
                 children=(make.heading(), make.links(make.between(3, 9))))  # fmt: skip
    parts = [column, links]
    return make.page(parts[::-1] if make.chance(0.5) else parts, flow="row")


def dialog(make: Builder, groups: Piles) -> Node:
    """A panel in front of a greyed page; every group is on the panel."""
    theme = make.theme
    widest = max(group.width for group in groups) + 4 * theme.space
    wide = max(widest, round(make.width * float(make.rng.uniform(0.55, 0.85))))
    parts: list[Node] = [make.heading(tag="h1")] if make.chance(0.8) else []
    if make.chance(0.6):
        parts.append(make.paragraph(1))
    inside = wide - 4 * theme.space
    for row in packed(groups, room=inside, between=2 * theme.space):
        parts.append(Node(
            flow="row", gap=2 * theme.space, align="center", children=tuple(map(make.group, row)),
            justify=("start", "center", "end", "between")[make.between(0, 3)],
        ))  # fmt: skip
    if make.chance(0.7):
        buttons = tuple(make.plain_button() for _ in range(make.between(1, 2)))
        parts.append(Node(flow="row", gap=theme.space, justify="end", children=buttons))
    panel = Node(
        "dialog", width=wide, gap=theme.space, pad=(theme.space, 2 * theme.space), fill=theme.card,
        line=theme.line, shadow=True, radius=theme.radius, children=tuple(parts),
    )  # fmt: skip
    how = ("start", "center", "end", "between")[make.between(0, 2)]
    across = ("start", "center", "end", "stretch")[make.between(0, 2)]
    layer = Node(
        width=make.width, height=make.height, justify=how, align=across,
        pad=(make.between(1, 4) * theme.space, make.between(1, 4) * theme.space),
        children=(panel,),
    )  # fmt: skip
    behind = Builder(make.rng, dimmed(theme), size=(make.width, make.height), clutter=1.0)
    parts = [behind.header([]), behind.body([behind.row(None) for _ in range(4)])]
    return Node(
        flow="stack", width=make.width, height=make.height, children=(behind.page(parts), layer)
    )


def table(make: Builder, groups: Piles) -> Node:
    """Columns of words with a column of groups, one group or none per line."""
    theme = make.theme
    wide = max(group.width for group in groups)
    count = make.between(1, 3)
    place = make.between(0, count)

    def line(group: Group | None, words: list[Node]) -> Node:
        room = () if group is None else (make.group(group),)
        cell = Node(flow="row", basis=wide, children=room)
        return Node(
            "li", flow="row", align="center", gap=theme.space, fill=theme.card, line=theme.line,
            pad=(max(2, theme.space // 2), theme.space),
            children=(*words[:place], cell, *words[place:]),
        )  # fmt: skip

    def words(bold: bool) -> list[Node]:
        return [replace(make.label(grow=1.0), bold=bold) for _ in range(count)]

    filled = [line(group, words(False)) for group in groups]
    empty = [line(None, words(False)) for _ in range(make.between(0, round(5 * make.clutter)))]
    lines = [line(None, words(True)), *make.spread(filled, empty)]
    head = [make.header([])] if make.chance(0.5) else []
    return make.page([*head, make.body([Node("ul", children=tuple(lines))])])


LAYOUTS: tuple[Callable[[Builder, Piles], Node], ...] = (
    dashboard, sidebar, rows, table, form, toolbar, article, dialog,
)  # fmt: skip
