"""Setup: what this machine and the project have and lack, and the plan that mends it, live.

`doctor` (in a process of its own) and `cloud status` flow in as one table, worst first, each lack
with the command that mends it; the setup plan flows in when asked for, and its steps are shown
while they are taken. `f` goes to the fake cloud, which needs no account. Left out: teardown.
"""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import DescendantFocus
from textual.widgets import Static

from saccade.tui import cloud_work, views
from saccade.tui.screens.cloud import STEPS, CloudScreen
from saccade.tui.screens.plan import finding_rows
from saccade.tui.widgets.grid import Column, Grid

CHECKS = (
    Column("level", "", 1), Column("where", "where", 5, rank=2),
    Column("name", "check", 16, grow=1), Column("message", "found", 28, grow=3),
    Column("fix", "to do", 20, rank=1, grow=2),
)  # fmt: skip


class Setup(CloudScreen):
    """Checks, plan, apply."""

    NAME = "setup"
    PLAN = "setup plan"
    SOURCES = ("doctor", "cloud", "setup plan", "setup plan progress", "setup plan done")
    POLLS = ("doctor", "cloud")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "plan", "plan", tooltip="what setup would make; changes nothing"),
        Binding("a", "apply", "apply", tooltip="make it, after a question"),
        Binding("f", "fake", "fake cloud", tooltip="use the local stand-in: no account needed"),
        Binding("d", "doctor", "check again", tooltip="check this machine again"),
    ]

    def body(self) -> ComposeResult:
        """Checks above, steps below, the whole of the chosen one between."""
        yield Grid(CHECKS, empty="checking this machine, some seconds ...", id="checks",
                   follow=False)  # fmt: skip
        yield Static(id="whole", classes="detail")
        yield Static("p plans what the project needs", id="said", classes="title")
        yield Grid(STEPS, empty="nothing planned yet", id="steps")

    def draw(self, *, now: float) -> None:
        """Draw checks and steps, with the age of each source."""
        self.query_one("#checks", Grid).show(finding_rows(self._found()))
        self.draw_steps()
        self._explain()
        self._say(now=now)

    def _found(self) -> list[dict[str, Any]]:
        """The checks that pass the filter."""
        found = views.checks(self.entry("doctor").value, self.entry("cloud").value)
        return [one for one in found if self.matches(f"{one['name']} {one['message']}")]

    def _say(self, *, now: float) -> None:
        done, wish = self.entry("setup plan done"), self.wish
        if self.entry("setup plan").busy:
            self.say("reading the project ...")
        elif done.busy:
            self.say("making it: leave at will, every step is recorded before it is taken")
        elif done.value is not None and (done.at or 0) > (self.entry("setup plan").at or 0):
            failed = done.value["failed"]
            self.say(f"{len(failed)} not done; a continues" if failed else "everything is made")
        elif wish is not None:
            many, same = len(wish.plan.steps), len(wish.plan.unchanged)
            project = f"{wish.settings.project}{' (fake)' if wish.settings.fake else ''}"
            self.say(f"{project}: {many} change(s), {same} unchanged; a makes them")
        else:
            ages = [f"{name} {self.host.age(self.entry(name).at, now=now) or 'not yet'}"
                    for name in ("doctor", "cloud")]  # fmt: skip
            self.say(f"p plans what the project needs   (checked: {', '.join(ages)})")

    def _explain(self) -> None:
        if self.query_one("#steps", Grid).has_focus:
            self.explain_step()
            return
        grid = self.query_one("#checks", Grid)
        number, shown = int(grid.key.split(" ")[0]) if grid.key else -1, self._found()
        if not 0 <= number < len(shown):
            return
        one = shown[number]
        fix = f"\nto do: {one['fix']}" if one["fix"] else ""
        self.query_one("#whole", Static).update(
            Content.assemble((one["name"], "bold"), f": {one['message']}", (fix, "$accent"))
        )

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Show the whole check, or the whole step."""
        self._explain()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Explain what has the focus now."""
        self._explain()

    def action_plan(self) -> None:
        if not self.host.sources.has_cloud():
            self.host.note("no project: GOOGLE_CLOUD_PROJECT in .env, or f for the fake cloud")
            return
        fake = self.host.sources.fake
        self.query_one("#steps").focus()
        self.host.work.start("setup plan", lambda: cloud_work.plan_up(fake=fake))

    def action_apply(self) -> None:
        wish = self.wish
        if wish is None:
            self.action_plan()
            self.host.note("planning first: a again makes it")
            return
        if self.is_working:
            return
        if not wish.plan.steps:
            self.host.note("nothing to do: everything is there")
            return
        self.ask(
            f"Make these {len(wish.plan.steps)} changes in {wish.settings.project}?",
            "\n".join(f"{step.verb} {step.what}" for step in wish.plan.steps),
            then=self.carry_out,
        )

    def action_fake(self) -> None:
        sources = self.host.sources
        sources.fake = not sources.fake
        if sources.fake:
            self.host.note("the fake cloud is used: nothing is real, nothing costs")
        else:
            sources.leave_fake()
            self.host.note("the fake cloud is left")
        self.host.store.put("setup plan", None)
        self.host.wake(("cloud",))

    def action_doctor(self) -> None:
        self.host.wake(("doctor",))
        self.host.note("checking this machine again")

    def copied(self) -> str:
        """The command that mends what the cursor is on."""
        grid = self.query_one("#checks", Grid)
        cells = dict(grid.rows).get(grid.key or "", {})
        return cells.get("fix", ("", ""))[0]
