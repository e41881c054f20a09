"""One project on a fake cloud, set up and torn down through the real planner and clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saccade.cloud.api.transport import Google, Patience, connect
from saccade.cloud.apply import Result, apply
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.cloud.manifest import Manifest
from saccade.cloud.plan import Plan, plan_setup
from saccade.cloud.resources import desired
from saccade.cloud.settings import CloudSettings, QuotaNeed, read_settings
from saccade.cloud.teardown import Leftover, plan_teardown, scan

CANARY = "canary-5f2c91"
QUICK = Patience(deadline_s=0.3, base_s=0.01, longest_s=0.05, timeout_s=60.0)
"""Gives up soon, so that a service that stays down costs a test no minutes."""
PATIENT = Patience(deadline_s=60.0, base_s=0.01, longest_s=0.05, timeout_s=60.0)
"""For faults that are to be survived: a slow machine must not use the time up."""

LOOKS = r"^(GET |POST \S*:getIamPolicy)"
"""Calls that only read."""


@dataclass
class Project:
    """A fake cloud with the settings, the connection and the record of one project on it."""

    cloud: FakeCloud
    settings: CloudSettings
    google: Google
    manifest: Manifest

    def plan(self) -> Plan:
        """Plan a setup."""
        return plan_setup(self.google, desired(self.settings), entries=self.manifest.entries())

    def setup(self) -> list[Result]:
        """Plan and apply a setup."""
        return self.apply(self.plan())

    def plan_teardown(self, *, all_labelled: bool = False) -> Plan:
        """Plan a teardown."""
        entries = self.manifest.entries()
        return plan_teardown(self.google, self.settings, entries=entries, all_labelled=all_labelled)

    def teardown(self, *, all_labelled: bool = False) -> list[Result]:
        """Plan and apply a teardown."""
        return self.apply(self.plan_teardown(all_labelled=all_labelled))

    def apply(self, plan: Plan) -> list[Result]:
        """Apply a plan in silence."""
        return apply(self.google, plan, manifest=self.manifest, hear=lambda step, result: None)

    def left(self) -> list[Leftover]:
        """Scan for leftovers; everything must be readable."""
        found, unreadable = scan(self.google, self.settings, entries=self.manifest.entries())
        assert not unreadable
        return found

    def changes(self, *, since: int = 0) -> list[str]:
        """List the calls that changed something, as METHOD and path."""
        calls = self.cloud.calls(since=since)
        lines = [f"{call['method']} {call['path']}" for call in calls]
        return [line for line in lines if not _reads(line)]

    def calls(self) -> int:
        """Count all calls so far."""
        return len(self.cloud.calls())


def environment(cloud: FakeCloud, home: Path) -> dict[str, str]:
    """Return the variables that point a process at a fake cloud."""
    return {
        "SACCADE_FAKE_CLOUD": cloud.url,
        "SACCADE_HOME": str(home),
        "GOOGLE_CLOUD_PROJECT": "my-project",
        "GOOGLE_CLOUD_ACCOUNT": "me@example.com",
        "WANDB_API_KEY": CANARY,
    }


@contextmanager
def project(
    folder: Path, *, scenario: Scenario | None = None, quotas: tuple[QuotaNeed, ...] = (),
    patience: Patience = QUICK, **env: str,
) -> Iterator[Project]:  # fmt: skip
    """Serve a new project; by default with the APIs of a fresh one."""
    with serve(folder / "cloud", scenario=scenario or Scenario(apis="fresh")) as cloud:
        values = environment(cloud, folder / "home") | env
        settings = read_settings(values, quotas=quotas)
        google = connect(settings.project, env=values).patient(patience)
        yield Project(cloud, settings, google, Manifest(settings.manifest_file))


def _reads(line: str) -> bool:
    import re

    return re.match(LOOKS, line) is not None
