"""How the terminal interface looks: texts of whole screens by size, colours that can be read.

Kept texts lie in `tui_screens/`; with UPDATE_SCREENS=1 they are written anew, to be looked
at before they are committed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from textual.color import Color

from saccade.tui import themes
from saccade.tui.widgets.grid import Column, fit
from tests.cloud_project import environment, project
from tests.run_folders import make_run
from tests.tui_session import QuickSources, Session, session

KEPT = Path(__file__).parent / "tui_screens"
NOW = 1_700_000_000.0
SIZES = ((80, 24), (120, 40), (200, 60))
WALKS: dict[str, tuple[tuple[str, ...], str]] = {
    "home": ((), "no project: everything runs here"),
    "monitor": (("1",), "preempted"),
    "run": (("1", "end", "enter"), "loss, 40 steps"),
    "results": (("6",), "90.0%"),
    "pipelines": (("5",), "finished"),
    "launch": (("2",), "training.steps"),
    "keys": (("1", "question_mark"), "keys that work here"),
}
"""Screen -> keys that lead there, and a word that is there when it is drawn."""
CLOUD_WALKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "setup-fresh": (("3", "p"), ("a makes them", "cloud project")),
    "setup": (("3",), ("here  memory", "credentials")),
    "infra": (("4",), ("what is there: $0.06 a month",)),
    "teardown": (("7",), ("D deletes",)),
    "teardown-ask": (("7", "D"), ("to go on",)),
}
"""The same for screens of a project, which is set up unless it is called fresh."""


class StillSources(QuickSources):
    """Sources on which no clock and no disk has an influence."""

    def board(self) -> dict[str, Any]:
        """The real board, with a disk of fixed size."""
        return super().board() | {"free_bytes": 50 << 30}

    def prices(self, machine: str | None = None, hours: float | None = None) -> dict[str, Any]:
        """A table of a fixed age."""
        assert machine is None
        return {"source": "packaged snapshot", "fetched_at": "2026-07-30", "age_days": 12}

    def pipelines(self) -> list[str]:
        """Two names."""
        return ["quickstart", "vlm"]


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StillSources:
    """Three runs at a fixed moment, in a folder whose name is not shown."""
    for name in ("SACCADE_FAKE_CLOUD", "GOOGLE_CLOUD_PROJECT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    root = Path("runs")
    make_run(root, "wide", done=True, at=NOW - 7200)
    make_run(root, "deep", last="preempted", at=NOW - 600)
    (make_run(root, "torn", done=True, at=NOW - 300) / "DONE").write_text("{")
    return StillSources(root=root, clock=lambda: NOW)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("screen", WALKS)
def test_a_screen_looks_as_it_did(
    still: StillSources, screen: str, size: tuple[int, int]
) -> None:  # fmt: skip
    keys, word = WALKS[screen]
    seen: list[str] = []

    async def steps(it: Session) -> None:
        await it.until("wide")
        for key in keys:
            await it.press(key)
            if key == "1":
                await it.until("saccade monitor", "wide")
        await it.until(word)
        seen.append(await drawn(it, screen=screen, size=size))

    session(still.root, steps, size=size, sources=still)
    keep(seen[0], screen=screen, size=size)


def kept_file(screen: str, size: tuple[int, int]) -> Path:
    """Where the text of a screen is kept."""
    return KEPT / f"{screen}-{size[0]}x{size[1]}.txt"


async def drawn(it: Session, *, screen: str, size: tuple[int, int]) -> str:
    """The text of the screen once it is the kept one and stays so; at last, whatever it is."""
    file = kept_file(screen, size)
    wanted = "" if os.environ.get("UPDATE_SCREENS") else file.read_text(encoding="utf-8")
    end = time.monotonic() + (60.0 if wanted else 2.0)
    stays = False
    while not stays and time.monotonic() < end:  # its sources answer when they can
        stays = it.text() + "\n" == wanted
        await it.pilot.pause(0.5 if stays else 0.05)
        stays = stays and it.text() + "\n" == wanted
    return it.text() + "\n"


def keep(seen: str, *, screen: str, size: tuple[int, int]) -> None:
    """Compare with the kept text; with UPDATE_SCREENS write it first."""
    file = kept_file(screen, size)
    if os.environ.get("UPDATE_SCREENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(seen, encoding="utf-8")
    assert seen == file.read_text(encoding="utf-8")
    assert all(len(line) <= size[0] for line in seen.splitlines())


@pytest.mark.parametrize("size", (SIZES[0], SIZES[-1]), ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("screen", CLOUD_WALKS)
def test_a_screen_of_a_project_looks_as_it_did(
    still: StillSources, screen: str, size: tuple[int, int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keys, words = CLOUD_WALKS[screen]
    seen: list[str] = []

    async def steps(it: Session) -> None:
        for key in keys:
            await it.press(key)
            await it.until({"3": "cloud ", "7": "D deletes"}.get(key, ""))
        await it.until(*words)
        seen.append(await drawn(it, screen=screen, size=size))

    with project(tmp_path) as made:
        for name, value in environment(made.cloud, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        if not screen.endswith("fresh"):
            made.setup()
        session(still.root, steps, size=size, sources=still)
    keep(seen[0], screen=screen, size=size)


@pytest.mark.parametrize("theme", themes.NAMES)
def test_every_theme_says_the_same_words(still: StillSources, theme: str) -> None:
    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("\u2714 done", "\u203c broken", "\u21af preempted")
        assert it.app.theme == theme
        assert set(it.app.role_styles) >= {"good", "busy", "warn", "bad", "dim"}

    session(still.root, steps, sources=still, theme=theme)


@pytest.mark.parametrize("theme", themes.THEMES, ids=lambda theme: theme.name)
def test_colours_can_be_read_on_their_background(theme: Any) -> None:
    """WCAG contrast: (L1 + 0.05) / (L2 + 0.05) of relative luminances, at least 4.5."""
    back = _luminance(theme.background)
    for name in ("foreground", "primary", "secondary", "accent", "success", "warning", "error"):
        front = _luminance(getattr(theme, name))
        ratio = (max(front, back) + 0.05) / (min(front, back) + 0.05)
        assert ratio >= 4.5, f"{theme.name} {name}: {ratio:.2f}"


def test_good_and_bad_stay_apart_without_red_or_green() -> None:
    """In the colour-blind theme good, warn and bad differ in blue alone, or in brightness."""
    theme = themes.COLOUR_BLIND
    pairs = (("success", "error"), ("success", "warning"), ("error", "warning"))
    for one, other in pairs:
        left, right = (
            Color.parse(getattr(theme, one) or ""),
            Color.parse(getattr(theme, other) or ""),
        )
        bright = abs(_luminance(left.hex) - _luminance(right.hex))
        assert abs(left.b - right.b) > 60 or bright > 0.2, (one, other)


def test_columns_are_left_out_by_rank_and_fill_the_width() -> None:
    columns = (
        Column("a", "a", 10, grow=1), Column("b", "b", 10, rank=2), Column("c", "c", 10, rank=1),
    )  # fmt: skip
    assert [one.key for one, _ in fit(columns, width=25)] == ["a", "c"]
    assert [(one.key, width) for one, width in fit(columns, width=60)] == [
        ("a", 35), ("b", 10), ("c", 10),
    ]  # fmt: skip
    assert [one.key for one, _ in fit(columns, width=5)] == ["a"]


def _luminance(text: str) -> float:
    red, green, blue = (_linear(part / 255) for part in Color.parse(text).rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
