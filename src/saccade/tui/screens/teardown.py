"""Teardown: what would be deleted, a word to type, progress, and the proof that nothing is left.

The plan of `saccade cloud teardown` flows in; after the project's name (or that of the bucket that
holds finished runs) was typed, each step is shown as it is taken, then what a scan still finds,
with its cost per month. Left out: setup.
"""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from saccade.tui import cloud_work
from saccade.tui.screens.cloud import STEPS, CloudScreen
from saccade.tui.screens.infra import LEFT, left_rows
from saccade.tui.widgets.grid import Grid


class Teardown(CloudScreen):
    """Plan, typed confirmation, progress, scan."""

    NAME = "teardown"
    PLAN = "teardown plan"
    SOURCES = ("cloud", "teardown plan", "teardown plan progress", "teardown plan done")
    POLLS = ("cloud",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "plan", "plan", tooltip="what would be deleted; changes nothing"),
        Binding("D", "apply", "delete", tooltip="delete it, after a word was typed"),
    ]

    def body(self) -> ComposeResult:
        """Steps above, what is left below."""
        yield Static("p plans what would be deleted", id="said", classes="title")
        yield Grid(STEPS, empty="nothing planned yet", id="steps")
        yield Static(id="whole", classes="detail")
        yield Static("left, after the last step", id="after", classes="title")
        yield Grid(LEFT, empty="looked for after the last step", id="left")

    def on_mount(self) -> None:
        """Plan at once where there is a project: planning changes nothing."""
        super().on_mount()
        self.query_one("#steps", Grid).focus()
        if self.host.sources.has_cloud():
            self.action_plan()

    def draw(self, *, now: float) -> None:
        """Draw the steps and what is left."""
        self.draw_steps()
        self.explain_step()
        done, wish = self.entry("teardown plan done"), self.wish
        if done.value is not None:
            rows = left_rows(done.value["leftovers"], done.value["unreadable"])
            grid = self.query_one("#left", Grid)
            grid.empty = "nothing of saccade's was found"
            grid.show(rows)
            grid.refresh()
        if self.entry("teardown plan").busy:
            self.say("reading the project ...")
        elif done.busy:
            self.say("deleting: leave at will, every step is recorded before it is taken")
        elif done.value is not None and (done.at or 0) > (self.entry("teardown plan").at or 0):
            failed, left = done.value["failed"], done.value["leftovers"]
            clean = not failed and not left and not done.value["unreadable"]
            said = f"{len(failed)} step(s) not done, {len(left)} thing(s) left; p plans the rest"
            self.say("nothing of saccade's is left" if clean else said)
        elif wish is not None:
            runs = sum(map(len, wish.finals.values()))
            held = f", with {runs} finished run(s)" if runs else ""
            many = len(wish.plan.steps)
            self.say(f"{wish.settings.project}: {many} thing(s) would be deleted{held}; D deletes")

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Show the whole step."""
        self.explain_step()

    def action_plan(self) -> None:
        if not self.host.sources.has_cloud():
            self.host.note("no project is configured: there is nothing to take down")
            return
        fake = self.host.sources.fake
        self.host.store.put("teardown plan done", None)
        self.host.store.put("teardown plan progress", {})
        self.host.work.start("teardown plan", lambda: cloud_work.plan_down(fake=fake))

    def action_apply(self) -> None:
        wish = self.wish
        if wish is None or self.is_working:
            self.host.note("nothing is planned: p plans")
            return
        if not wish.plan.steps:
            self.host.note("nothing to delete")
            return
        lines = [f"{step.verb} {step.what}" for step in wish.plan.steps]
        for bucket, runs in wish.finals.items():
            lines.insert(
                0, f"gs://{bucket} holds {len(runs)} finished run(s): {', '.join(runs[:5])}"
            )
        typed = next(iter(wish.finals), wish.settings.project)
        self.ask(
            f"Delete these {len(wish.plan.steps)} things in {wish.settings.project}?",
            "\n".join(lines), then=self.carry_out, typed=typed,
        )  # fmt: skip
