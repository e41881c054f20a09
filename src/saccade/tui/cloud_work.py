"""Setting a project up and taking it down, step by step, for a screen that watches.

A wish flows in, a plan flows out, and then results one by one: the same planner, the same `apply`
and the same final scan as `saccade cloud`. Every step is recorded before it is taken, so a kill
leaves nothing unknown. All of this is slow and runs in threads. Left out: asking people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saccade.cloud.api.transport import Google
    from saccade.cloud.apply import Result
    from saccade.cloud.manifest import Manifest
    from saccade.cloud.plan import Plan, Step
    from saccade.cloud.settings import CloudSettings

Progress = Callable[[dict[str, dict[str, Any]]], None]


@dataclass(frozen=True)
class Wish:
    """A plan and what is needed to carry it out."""

    google: Google
    settings: CloudSettings
    manifest: Manifest
    plan: Plan
    finals: dict[str, list[str]] = field(default_factory=dict)
    """Finished runs by bucket that a teardown would delete."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "project": self.settings.project, "region": self.settings.region,
            "fake": self.settings.fake, "finals": self.finals, **self.plan.to_json(),
        }  # fmt: skip


def plan_up(*, fake: bool, only: Sequence[str] = ()) -> Wish:
    """Plan a setup."""
    from saccade.cli_cloud import open_project
    from saccade.cloud.plan import chosen, plan_setup
    from saccade.cloud.resources import desired

    google, settings, manifest = open_project(fake=fake)
    resources = chosen(desired(settings), only=only)
    plan = plan_setup(google, resources, entries=manifest.entries())
    return Wish(google, settings, manifest, plan)


def plan_down(*, fake: bool) -> Wish:
    """Plan a teardown; names the finished runs that would go with it."""
    from saccade.cli_cloud import open_project
    from saccade.cloud.teardown import held_finals, plan_teardown

    google, settings, manifest = open_project(fake=fake)
    plan = plan_teardown(google, settings, entries=manifest.entries(), all_labelled=False)
    return Wish(google, settings, manifest, plan, held_finals(google, plan))


def carry_out(wish: Wish, *, show: Progress) -> dict[str, Any]:
    """Take every step and tell of each; after a teardown look for what is left."""
    from saccade.cloud.apply import apply

    states: dict[str, dict[str, Any]] = {
        step.id: {"status": "waits", "message": "", "seconds": 0.0} for step in wish.plan.steps
    }

    def hear(step: Step, result: Result | None) -> None:
        if result is None:
            states[step.id] = {"status": "now", "message": "", "seconds": 0.0}
        else:
            states[step.id] = {
                "status": result.status, "message": result.message, "seconds": result.seconds,
            }  # fmt: skip
        show({key: dict(value) for key, value in states.items()})

    results = apply(wish.google, wish.plan, manifest=wish.manifest, hear=hear)
    found: dict[str, Any] = {
        "results": [one.to_json() for one in results],
        "failed": [one.id for one in results if one.status != "done"],
    }
    if wish.plan.purpose == "teardown":
        found |= leftovers(wish)
    return found


def leftovers(wish: Wish) -> dict[str, Any]:
    """What still carries saccade's labels, and what could not be listed."""
    from saccade.cloud.teardown import scan

    left, unseen = scan(wish.google, wish.settings, entries=wish.manifest.entries())
    return {
        "leftovers": [one.to_json() for one in left],
        "unreadable": [one.to_json() for one in unseen],
    }
