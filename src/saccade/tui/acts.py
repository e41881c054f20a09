"""What can be done about a run from the interface: cancel it, continue it, let it be watched.

A screen and the row under its cursor flow in; a question and, after a yes, a verb in a process of
its own flow out, so that closing the interface stops nothing. Left out: the questions' box
(`screens/boxes.py`) and the verbs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saccade.launch.messages import money
from saccade.tui.screens.base import Base
from saccade.tui.words import step_text

Row = Mapping[str, Any]


class Acting(Base):
    """The keys of a screen that has a run under its cursor."""

    def row(self) -> Row | None:
        """That run."""
        raise NotImplementedError

    def action_cancel(self) -> None:
        cancel(self, self.row())

    def action_resubmit(self) -> None:
        resubmit(self, self.row())

    def action_home(self) -> None:
        bring_home(self, self.row())

    def action_watch(self) -> None:
        watch(self, self.row())

    def action_browse(self) -> None:
        self.host.browse(self.row())


def cancel(screen: Base, row: Row | None) -> None:
    """Ask with name and cost, then stop a launch."""
    if row is None:
        return
    host = screen.host
    if not row.get("launch"):
        host.note(f"{row['run']}: was not launched from here; Ctrl+C where it runs", error=True)
        return
    if row["over"]:
        host.note(f"{row['launch']}: is over already")
        return
    spent = money(row["usd"])
    body = (
        f"{row['where']}, {row['state']}, step {step_text(row) or 'none'}, {spent} so far.\n"
        "The training saves itself where it can; r continues it later."
    )
    words = ["cancel", str(row["launch"]), "--yes", "--root", str(host.sources.root)]
    screen.ask(
        f"Cancel {row['launch']}?", body,
        then=lambda: host.start(words, title=f"cancel {row['run']}"),
    )  # fmt: skip


def resubmit(screen: Base, row: Row | None) -> None:
    """Ask, then continue an ended launch or an unfinished run from its checkpoint."""
    if row is None:
        return
    host, name = screen.host, row.get("launch")
    if row["state"] in ("DONE", "SUCCEEDED"):
        host.note(f"{row['run']}: is done; there is nothing to continue")
        return
    if name and not row["over"]:
        watch(screen, row)
        return
    saved = row["checkpoint_step"]
    env: dict[str, str] = {}
    at = f"from checkpoint {saved}" if saved is not None else "from the start: no checkpoint yet"
    if name:
        words = ["watch", str(name), "--again", "--root", str(host.sources.root)]
        price = f" at {money(row['usd_per_hour'])}/h" if row.get("usd_per_hour") else ""
        body = f"It goes on {at}, on {row['where']}{price}.\nSpent so far: {money(row['usd'])}."
    elif row["state"] in ("STOPPED", "PREEMPTED", "FAILED", "NEW") and row["path"]:
        file = f"{row['path']}/config.yaml"
        words, env = ["train", file], {"SACCADE_CONFIG": file}
        body = f"It goes on {at}, on this machine, in the background."
    else:
        host.note(f"{row['run']}: {row['state'].lower()} cannot be continued from here", error=True)
        return
    screen.ask(
        f"Continue {row['run']}?", body,
        then=lambda: host.start(words, title=f"continue {row['run']}", env=env),
    )  # fmt: skip


def bring_home(screen: Base, row: Row | None) -> None:
    """Fetch a finished run from its store; an unfinished one comes as far as it is."""
    if row is None:
        return
    if not row.get("launch") or row.get("target") in ("local", "docker"):
        screen.host.note(f"{row['run']}: is here already")
        return
    words = ["fetch", str(row["launch"]), "--root", str(screen.host.sources.root)]
    screen.ask(
        f"Bring {row['run']} here?",
        f"Every file is checked. It comes to {screen.host.sources.root}/{row['run']}.",
        then=lambda: screen.host.start(words, title=f"fetch {row['run']}"),
    )  # fmt: skip


def watch(screen: Base, row: Row | None) -> None:
    """Start a watcher, which resubmits what is preempted; it outlives the interface."""
    if row is None or not row.get("launch"):
        return
    host = screen.host
    if row["over"]:
        host.note(f"{row['launch']}: is over; there is nothing to watch")
        return
    if row["watched_by"] is not None:
        host.note(f"{row['launch']}: is watched already (process {row['watched_by']})")
        return
    words = ["watch", str(row["launch"]), "--root", str(host.sources.root)]
    screen.ask(
        f"Watch over {row['launch']}?",
        "A process in the background submits it again when its machine is taken, and stops it at "
        "its budget. It goes on when this window is closed.",
        then=lambda: host.start(words, title=f"watch {row['run']}"),
    )  # fmt: skip
