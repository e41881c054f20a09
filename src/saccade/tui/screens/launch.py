"""Launch: a form made from the schema, checked while it is typed, then the plan, then a yes.

Every key of the configuration has its value, where that value comes from, its type and its
sentence; what is wrong is said as the command line says it, before anything happens. `p` shows job,
places, price and findings. Left out: the plan (`plan.py`) and the verb that launches.
"""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.suggester import SuggestFromList
from textual.widgets import Input, Static

from saccade.tui.form import Checked, Field, Form
from saccade.tui.screens.base import Base
from saccade.tui.widgets.grid import Column, Grid

COLUMNS = (
    Column("key", "key", 24, grow=2), Column("value", "value", 18, grow=2),
    Column("source", "from", 14, rank=1, grow=1), Column("type", "type", 20, rank=2, grow=2),
    Column("sentence", "meaning", 30, rank=3, grow=6),
)  # fmt: skip


class Launch(Base):
    """The form."""

    NAME = "launch"
    SOURCES = ("form", "candidate", "prices")
    POLLS = ("prices",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "edit", "edit", tooltip="type a value for this key"),
        Binding("space", "turn", "choose", tooltip="the next of the values it can have"),
        Binding("x", "clear", "unset", tooltip="forget what was typed for this key"),
        Binding("p", "plan", "plan", tooltip="job, places, price and findings; spends nothing"),
        Binding("m", "memory", "memory", tooltip="does it fit: tokens, memory, largest batch"),
        Binding("d", "prices", "prices", key_display="d", tooltip="what this machine costs where"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.form = Form()
        self.editing: str | None = None

    def body(self) -> ComposeResult:
        """The table of keys, the meaning of one, the line to type in."""
        yield Grid(COLUMNS, empty="reading the schema ...", id="fields")
        yield Static(id="meaning", classes="detail")
        yield Input(id="editor", compact=True, disabled=True, placeholder="enter edits a value")
        yield Static(id="problem")

    def on_mount(self) -> None:
        """Read the schema, in a thread."""
        super().on_mount()
        if self.host.sources.fake:
            self.form.typed["launch.target"] = "fake"
        self.query_one(Grid).focus()
        self.host.work.start("form", self.form.check)

    def checked(self) -> Checked | None:
        """The last answer to the form."""
        return self.entry("form").value

    def field(self, key: str | None) -> Field | None:
        """A field by its key."""
        checked = self.checked()
        return next((one for one in checked.fields if one.key == key), None) if checked else None

    def draw(self, *, now: float) -> None:
        """Draw the keys that pass the filter, and what is wrong."""
        checked = self.checked()
        if checked is None:
            return
        if checked.fields:
            rows = [
                (
                    one.key,
                    {
                        "key": (one.key, "strong" if one.changed else "plain"),
                        "value": (one.text or "-", "accent" if one.changed else "plain"),
                        "source": (one.source, "dim"), "type": (one.type, "dim"),
                        "sentence": (one.sentence, "dim"),
                    },
                )
                for one in checked.fields
                if self.matches(f"{one.key} {one.text} {one.sentence}")
            ]  # fmt: skip
            self.query_one(Grid).show(rows)
        self._explain()
        candidate: Checked | None = self.entry("candidate").value if self.editing else None
        problem = candidate.problem if candidate is not None else checked.problem
        box = self.query_one("#problem", Static)
        box.set_class(bool(problem), "-on")
        box.update(Content(problem))

    def _explain(self) -> None:
        one = self.field(self.editing or self.query_one(Grid).key)
        if one is None:
            return
        known = f"  one of {', '.join(one.options)}" if one.options else ""
        self.query_one("#meaning", Static).update(
            Content.assemble(
                (one.key, "bold"), f" = {one.text or 'null'}", (f"  ({one.source})", "$text-muted"),
                f"\n{one.sentence}\n", (f"{one.type}; default {one.default}", "$text-muted"),
                (known if one.key in ("recipe", "launch.machine") else "", "$text-muted"),
            )
        )  # fmt: skip

    def hint(self) -> str:
        """The command line of this form."""
        return "saccade launch " + " ".join(self.form.words())

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Explain the key under the cursor."""
        self._explain()

    def on_grid_opened(self, event: Grid.Opened) -> None:
        """Edit it."""
        self.action_edit()

    def action_edit(self) -> None:
        one = self.field(self.query_one(Grid).key)
        if one is None:
            return
        self.editing = one.key
        editor = self.query_one("#editor", Input)
        editor.disabled = False
        editor.suggester = SuggestFromList(one.options) if one.options else None
        editor.value = one.text
        editor.placeholder = one.type
        editor.focus()
        self.redraw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Check every letter, in a thread; only the newest answer counts."""
        if event.input.id != "editor":
            super().on_input_changed(event)
            return
        if self.editing is not None:
            candidate = self.form.with_value(self.editing, event.value)
            self.host.work.start("candidate", candidate.check)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the value if the command line would."""
        if event.input.id != "editor":
            super().on_input_submitted(event)
            return
        if self.editing is None:
            return
        candidate = self.form.with_value(self.editing, event.value)
        known: Checked | None = self.entry("candidate").value
        if known is not None and known.words == tuple(candidate.words()) and known.problem:
            self.host.note(known.problem, error=True)
            return
        self._take(candidate)

    def _take(self, form: Form) -> None:
        self.form = form
        self._leave_editor()
        self.host.work.start("form", form.check)

    def _leave_editor(self) -> None:
        editor = self.query_one("#editor", Input)
        self.editing = None
        editor.value = ""
        editor.disabled = True
        editor.placeholder = "enter edits a value"
        self.query_one(Grid).focus()
        self.redraw()

    def action_unfilter(self) -> None:
        if self.editing is not None:
            self._leave_editor()
        else:
            super().action_unfilter()

    def action_turn(self) -> None:
        one = self.field(self.query_one(Grid).key)
        if one is None or not one.options:
            self.action_edit()
            return
        here = one.options.index(one.text) if one.text in one.options else -1
        self._take(self.form.with_value(one.key, one.options[(here + 1) % len(one.options)]))

    def action_clear(self) -> None:
        key = self.query_one(Grid).key
        if key is not None:
            self._take(self.form.without(key))

    def _sound(self) -> bool:
        checked = self.checked()
        if checked is None or checked.problem:
            self.host.note(checked.problem if checked else "still reading the schema", error=True)
            return False
        return True

    def action_plan(self) -> None:
        if self._sound():
            from saccade.tui.screens.plan import PlanScreen

            self.app.push_screen(PlanScreen(self.form.words()))

    def action_memory(self) -> None:
        if self._sound():
            from saccade.tui.screens.plan import MemoryScreen

            self.app.push_screen(MemoryScreen(self.form.words()))

    def action_prices(self) -> None:
        machine, hours = self.field("launch.machine"), self.field("launch.hours")
        if machine is not None:
            from saccade.tui.screens.plan import PricesScreen

            given = float(hours.text) if hours is not None and hours.text else None
            self.app.push_screen(PricesScreen(machine.text, given))

    def copied(self) -> str:
        """The command."""
        return self.hint()
