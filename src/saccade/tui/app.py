"""The terminal interface: screens, keys, themes, and the threads that read.

Settings flow in, a session in a terminal flows out. The app owns no process and writes nothing: it
reads run directories and the launch log, and what it starts are verbs in processes of their own, so
it can be left or killed at any moment. Nothing here reads a file or asks a network; pollers do, and
a tick a few times a second draws what changed. Left out: what each screen shows (`screens/`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from rich.style import Style
from textual import events
from textual.app import App, ScreenStackError, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget

from saccade.tui import themes
from saccade.tui.poll import Poller, Work
from saccade.tui.screens.base import Base
from saccade.tui.screens.home import Home
from saccade.tui.sources import Sources
from saccade.tui.store import Store

TICK_S = 0.2
EVERY_S: Mapping[str, float] = {
    "board": 1.0, "cloud": 60.0, "doctor": 3600.0, "prices": 600.0, "pipelines": 5.0,
    "results": 5.0, "costs": 120.0,
}  # fmt: skip
"""Seconds between two looks at each source."""
PLACES = (
    ("1", "monitor", "runs and jobs, live"),
    ("2", "launch", "train something, here or elsewhere"),
    ("3", "setup", "check this machine and the cloud, and set them up"),
    ("4", "infra", "what stands in the cloud and what it costs"),
    ("5", "pipelines", "stages and their states"),
    ("6", "results", "reports, tables and figures"),
    ("7", "teardown", "take down what setup made"),
    ("0", "home", "everything at a glance"),
)
"""Key, screen and what it is for."""


def _screen(name: str) -> Callable[[], Screen]:
    """Make a screen when it is first shown; its module is loaded then."""

    def make() -> Screen:
        from importlib import import_module

        return getattr(import_module(f"saccade.tui.screens.{name}"), name.capitalize())()

    return make


def _short(address: str) -> str:
    """An address as a person would name it: a file below this folder by its path from here."""
    parts = urlsplit(address)
    path = Path(unquote(parts.path))
    if parts.scheme != "file" or not path.is_relative_to(Path.cwd()):
        return address
    return str(path.relative_to(Path.cwd()))


class SaccadeApp(App[None]):
    """The whole interface."""

    CSS_PATH = Path(__file__).with_name("app.tcss")
    TITLE = "saccade"
    MODES: ClassVar[dict[str, Any]] = {
        "home": Home,
        **{name: _screen(name) for _, name, _ in PLACES if name != "home"},
    }
    DEFAULT_MODE = "home"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, f"go('{name}')", name, show=False, tooltip=what)
          for key, name, what in PLACES),
        Binding("question_mark", "keys", "keys", key_display="?", tooltip="every key that works"),
        Binding("e", "errors", "errors", show=False, tooltip="the last errors and notes"),
        Binding("R", "read_only", "read-only", show=False, tooltip="allow or forbid changes"),
        Binding("ctrl+o", "jump", "jump", show=False, tooltip="letters to go anywhere"),
        Binding("ctrl+t", "theme", "theme", show=False, tooltip="the next theme"),
        Binding("q", "retreat", "back", tooltip="back; from home: leave"),
    ]  # fmt: skip

    def __init__(
        self, sources: Sources, *, read_only: bool = False, theme: str | None = None,
        first: str = "home",
    ) -> None:  # fmt: skip
        super().__init__()
        self.sources = sources
        self.store = Store(clock=sources.clock)
        self.work = Work(self.store)
        self.read_only = read_only
        self.first = first
        self.started: list[Any] = []
        self.role_styles: Mapping[str, Style] = {}
        self._looked_at = True
        self.pollers = {
            name: Poller(name, getattr(self.sources, name), EVERY_S[name],
                         wanted=lambda name=name: self.is_wanted(name), asleep=self.is_asleep)
            for name in EVERY_S
        }  # fmt: skip
        for one in themes.THEMES:
            self.register_theme(one)
        self.theme = theme if theme in themes.NAMES else themes.NAMES[0]

    def on_mount(self) -> None:
        """Draw first, read then."""
        self.theme_changed_signal.subscribe(self, lambda _: self._restyle())
        self.role_styles = themes.role_styles(self.theme_variables)
        self.set_interval(TICK_S, self._tick)
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        if self.first != "home":
            self.action_go(self.first)
        for poller in self.pollers.values():
            poller.start(self.store)

    def on_unmount(self) -> None:
        """Read no more."""
        self.work.forget()
        for poller in self.pollers.values():
            poller.stop()

    def _tick(self) -> None:
        now = self.now()
        self._hear_of_started()
        stack = self._stack()
        if stack and isinstance(stack[-1], Base):
            stack[-1].tick(now=now)

    def _restyle(self) -> None:
        self.role_styles = themes.role_styles(self.theme_variables)
        for screen in self._stack():
            if isinstance(screen, Base):
                screen.restyle()

    @property
    def base(self) -> Base | None:
        """The screen below any box."""
        bases = [one for one in self._stack() if isinstance(one, Base)]
        return bases[-1] if bases else None

    def _stack(self) -> list[Screen]:
        """The screens, lowest first; none while one goes and the next is not there yet."""
        try:
            return list(self.screen_stack)
        except (ScreenStackError, KeyError):
            return []

    def is_wanted(self, name: str) -> bool:
        """Whether the screen that is shown shows this source."""
        base = self.base
        if name == "board":  # it stands in the top line of every screen, and costs little
            return True
        return base is not None and name in getattr(base, "POLLS", base.SOURCES)

    def is_asleep(self) -> bool:
        """Whether the terminal is in the background, as far as it says so."""
        return not self._looked_at

    def on_app_focus(self, event: events.AppFocus) -> None:
        """Somebody looks again."""
        self._looked_at = True
        self.wake(("board",))

    def on_app_blur(self, event: events.AppBlur) -> None:
        """Nobody looks: read more rarely."""
        self._looked_at = False

    def wake(self, names: Iterable[str]) -> None:
        """Let these sources be read now."""
        for name in names:
            if name in self.pollers:
                self.pollers[name].kick.set()

    def now(self) -> float:
        """The present time."""
        return self.sources.clock()

    def age(self, moment: float | None, *, now: float) -> str:
        """How long ago."""
        from saccade.tui.words import age_of

        return age_of(moment, now=now)

    def note(self, text: str, *, error: bool = False) -> None:
        """Say something in the status line; it stays findable under `e`."""
        self.store.say("you", text, level="error" if error else "note")
        base = self.base
        if base is not None:
            base.redraw()

    def top_parts(self, *, now: float) -> list[tuple[str, str]]:
        """The facts of the top line, each with its colour."""
        from saccade.tui.views import totals

        parts: list[tuple[str, str]] = []
        cloud, board = self.store.get("cloud"), self.store.get("board")
        if cloud.value and cloud.value.get("project"):
            fake = " (fake)" if cloud.value["fake"] else f" {cloud.value['region']}"
            age = self.age(cloud.at, now=now)
            parts.append((f"{cloud.value['project']}{fake} {age}", "$text-muted"))
        if board.value is not None:
            sums = totals(board.value["rows"])
            parts.append((f"{sums['active']} active", "$success" if sums["active"] else ""))
            if sums["usd"] or sums["usd_per_hour"]:
                parts.append((f"${sums['usd']:.2f} +${sums['usd_per_hour']:.2f}/h", "$accent"))
            if sums["nobody_watches"]:
                parts.append((f"{len(sums['nobody_watches'])} unwatched", "$warning"))
            age_s = board.age_s(now=now) or 0.0
            if age_s > 5 * EVERY_S["board"]:
                parts.append((f"seen {self.age(board.at, now=now)} ago", "$warning"))
        if self.read_only:
            parts.append(("read-only", "$warning"))
        return parts

    def number_keys(self) -> list[tuple[str, str]]:
        """Number keys and the screens they lead to."""
        return [(key, name) for key, name, _ in PLACES]

    def start(
        self, words: Sequence[str], *, title: str, env: Mapping[str, str] | None = None
    ) -> None:  # fmt: skip
        """Start a verb that outlives this session."""
        from saccade.tui import actions

        if self.read_only:
            self.note("read-only: press R to allow changes", error=True)
            return
        try:
            self.started.append(actions.start(words, title=title, env=env))
        except OSError as error:
            self.note(f"{title}: cannot be started: {error.strerror}", error=True)
            return
        self.note(f"started: {title}")

    def _hear_of_started(self) -> None:
        for one in list(self.started):
            code = one.code()
            if code is None:
                continue
            self.started.remove(one)
            if code == 0:
                self.note(f"done: {one.title}")
            else:
                said = one.tail().removeprefix("error: ")
                self.note(f"{one.title}: exit code {code}: {said}", error=code != 143)
            self.wake(("board", "results", "pipelines", "cloud"))

    def open_run(self, key: str, *, tab: str = "overview") -> None:
        """Show one run in full."""
        from saccade.tui.screens.run import RunScreen

        self.push_screen(RunScreen(key, tab=tab))

    def browse(self, row: Mapping[str, Any] | None) -> None:
        """Open a report or a job's page in a browser; without one, copy where it is."""
        if row is None:
            return
        report = Path(row["path"]) / "report.html" if row.get("path") else None
        url = (row.get("job") or {}).get("url")
        target = report.absolute().as_uri() if report and row.get("report") else url
        if target is None:
            self.note(f"{row['run']}: no report yet; 6, then b writes it")
            return
        self.open_address(target)

    def open_address(self, address: str) -> None:
        """Open an address where there is a display; elsewhere copy it."""
        has_display = sys.platform == "darwin" or any(
            os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
        )
        if has_display:
            self.open_url(address)
        self.copy_to_clipboard(address)
        said = "opened" if has_display else "no browser here; copied the address of"
        self.note(f"{said}: {_short(address)}")

    def action_go(self, name: str) -> None:
        if self.current_mode != name:
            self.switch_mode(name)

    def action_retreat(self) -> None:
        if len(self.screen_stack) > 1:
            self.pop_screen()
        elif self.current_mode != "home":
            self.action_go("home")
        else:
            self.exit()

    def action_keys(self) -> None:
        from saccade.tui.screens.boxes import Keys
        from saccade.tui.screens.keys import key_rows

        self.push_screen(Keys("keys that work here", key_rows(self.screen)))

    def action_errors(self) -> None:
        from saccade.tui.screens.boxes import Errors

        self.push_screen(Errors(list(self.store.said)))

    def action_read_only(self) -> None:
        self.read_only = not self.read_only
        self.note("read-only: nothing can be changed" if self.read_only else "changes are allowed")

    def action_theme(self) -> None:
        names = themes.NAMES
        here = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(here + 1) % len(names)]
        self.note(f"theme: {self.theme}")

    def action_jump(self) -> None:
        from saccade.tui.screens.boxes import Jump

        def go(widget: Widget | None) -> None:
            if widget is not None:
                widget.focus()

        targets = [one for one in self.screen.focus_chain if one.region.area]
        self.push_screen(Jump(targets), go)

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        """The palette: every screen, every key of this screen, themes."""
        for _, name, what in PLACES:
            yield SystemCommand(f"go to {name}", what, lambda name=name: self.action_go(name))
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.tooltip and active.enabled:
                yield SystemCommand(
                    binding.description or binding.action, binding.tooltip,
                    lambda one=active: self.run_later(one.node, one.binding.action),
                )  # fmt: skip
        yield SystemCommand("theme", "choose a theme", self.action_change_theme)
        yield SystemCommand("leave", "leave; nothing stops", self.exit)

    def run_later(self, node: Any, action: str) -> None:
        """Run a binding's action where it belongs."""
        self.call_later(self.run_action, action, default_namespace=node)
