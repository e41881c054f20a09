"""The target `fake`: Vertex jobs in the imitation of Google Cloud on this machine.

The same code as `vertex` speaks to a loopback server, whose containers are processes of this
machine. A server that SACCADE_FAKE_CLOUD names is used; without one, a background server is
started. No account, no network and no GPU are needed. Left out: the server (`cloud/fake/`).
"""

from __future__ import annotations

from dataclasses import dataclass

from saccade.cloud.api.transport import connect
from saccade.launch.targets.base import Settings
from saccade.launch.targets.vertex import VertexTarget

VARIABLE = "SACCADE_FAKE_CLOUD"


@dataclass
class FakeTarget(VertexTarget):
    """Vertex jobs in a fake cloud."""

    name: str = "fake"

    @classmethod
    def open(cls, settings: Settings) -> FakeTarget:
        """Connect to the fake cloud, starting one when there is none."""
        env = fake_env(dict(settings.env))
        region = settings.region or env.get("GOOGLE_CLOUD_REGION") or "us-central1"
        google = connect(settings.project, env=env)
        return cls(google=google, regions=(region,), look_pause_s=0.2)


def fake_env(env: dict[str, str]) -> dict[str, str]:
    """Return the environment with the address of a running fake cloud."""
    if not env.get(VARIABLE):
        from saccade.cloud.fake.background import ensure_running

        env[VARIABLE] = ensure_running()
    return env
