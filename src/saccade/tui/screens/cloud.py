"""What Setup and Teardown share: a plan of steps that is shown, asked about, carried out, watched.

A wish (plan and connection) flows in from a thread; its steps flow out as rows that change while
each is taken. Left out: which plan (`setup.py`, `teardown.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from textual.content import Content
from textual.widgets import Static

from saccade.tui.screens.base import Base
from saccade.tui.widgets.grid import Column, Grid, Row

if TYPE_CHECKING:
    from saccade.tui.cloud_work import Wish

STEPS = (
    Column("state", "", 8), Column("verb", "", 8, rank=1), Column("group", "part", 9, rank=3),
    Column("what", "step", 48, grow=2), Column("message", "", 20, rank=4, grow=1),
    Column("seconds", "", 7, rank=2, right=True),
)  # fmt: skip
NOTHING = "nothing to do"
STATES: Mapping[str, tuple[str, str]] = {
    "planned": ("\u25cb", "dim"), "waits": ("\u25cb waits", "dim"), "now": ("\u25cf now", "busy"),
    "done": ("\u2714 done", "good"), "failed": ("\u2718 failed", "bad"),
    "skipped": ("\u25cc skip", "warn"),
}  # fmt: skip


class CloudScreen(Base):
    """A screen with a plan of steps."""

    PLAN: ClassVar[str] = ""
    """Source of the plan; `PLAN progress` and `PLAN done` follow it."""

    @property
    def wish(self) -> Wish | None:
        """The plan that is shown."""
        return self.entry(self.PLAN).value

    @property
    def is_working(self) -> bool:
        """Whether steps are being taken."""
        return self.entry(f"{self.PLAN} done").busy

    def carry_out(self) -> None:
        """Take the steps in a thread, which tells of each."""
        from saccade.tui.cloud_work import carry_out

        wish, store, host = self.wish, self.host.store, self.host
        if wish is None or self.is_working:
            return
        name = self.PLAN
        store.put(f"{name} progress", {})

        def work() -> dict[str, Any]:
            found = carry_out(wish, show=lambda now: store.put(f"{name} progress", now))
            host.wake(("cloud", "costs"))
            return found

        self.host.work.start(f"{name} done", work)

    def draw_steps(self) -> None:
        """Draw the plan, and how far it is."""
        wish = self.wish
        if wish is None:
            return
        progress: Mapping[str, Any] = self.entry(f"{self.PLAN} progress").value or {}
        rows: list[Row] = [
            (finding.name, {"state": STATES["failed"], "what": (finding.message, "bad"),
                            "group": ("refused", "bad"), "message": (finding.fix, "accent")})
            for finding in wish.plan.refused
        ]  # fmt: skip
        for step in wish.plan.steps:
            known = progress.get(step.id, {"status": "planned", "message": "", "seconds": 0.0})
            spent = known["seconds"]
            rows.append(
                (
                    step.id,
                    {
                        "state": STATES.get(known["status"], STATES["planned"]),
                        "verb": (step.verb, "plain"), "group": (step.resource.group, "dim"),
                        "what": (step.what, "plain"),
                        "message": (known["message"].replace("\n  fix: ", "; fix: "), "dim"),
                        "seconds": (f"{spent:.1f} s" if spent else "", "dim"),
                    },
                )
            )  # fmt: skip
        grid = self.query_one("#steps", Grid)
        if not rows and grid.empty != NOTHING:
            grid.empty = NOTHING
            grid.refresh()
        grid.show(rows)

    def explain_step(self) -> None:
        """Say the whole of the step under the cursor: what it is, and why it was not done."""
        wish, key = self.wish, self.query_one("#steps", Grid).key
        if wish is None or key is None:
            return
        step = next((one for one in wish.plan.steps if one.id == key), None)
        refused = next((one for one in wish.plan.refused if one.name == key), None)
        if step is not None:
            progress = self.entry(f"{self.PLAN} progress").value or {}
            said = progress.get(key, {}).get("message", "")
            title, text = f"{step.verb} ", step.what
        elif refused is not None:
            title, text, said = "refused: ", refused.message, refused.fix
        else:
            return
        why = f"\n{said}" if said else ""
        self.query_one("#whole", Static).update(
            Content.assemble((title, "bold"), text, (why, "$accent"))
        )

    def say(self, text: str) -> None:
        """Write the line above the plan."""
        self.query_one("#said", Static).update(Content(text))
