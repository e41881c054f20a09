"""A launch that ended without its result is taken up again from nothing but its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saccade.config.errors import InputError
from saccade.launch.begin import resubmit
from saccade.launch.log import Launch, launch_of
from saccade.launch.states import State

SPEC: dict[str, Any] = {
    "run": "mine", "token": "abc", "attempt": 1, "recipe": "relevance", "machine": "a2-highgpu-1g",
    "replicas": 1, "strategy": "spot", "region": "us-central1", "image": None, "code": "",
    "config": "c", "store": "gs://bucket",
}  # fmt: skip
OFFER = {"region": "us-central1", "machine": "m", "strategy": "spot", "usd_per_hour": 3.6}
POLICY = {"max_attempts": 3, "wait_s": 60.0, "backoff_s": 1.0, "budget_usd": 5.0}


def ended(folder: Path, state: str, *, attempts: int = 3, packed: bool = True) -> Launch:
    """A launch that used up its attempts."""
    launch = launch_of(folder, run="mine", token="abc")
    launch.append("planned", spec=SPEC, target="vertex", run_dir="r", offers=[OFFER],
                  policy=POLICY)  # fmt: skip
    if packed:
        launch.append("ready", spec=SPEC)
        for attempt in range(1, attempts + 1):
            handle = {"target": "vertex", "id": str(attempt), "region": "r", "url": None}
            launch.append("submitted", attempt=attempt, offer=0, handle=handle)
            launch.append("state", state="RUNNING", detail="")
    launch.append("ended", state=state, message="so it ended", exit_code=1)
    return launch


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "INCOMPLETE"])
def test_an_ended_launch_goes_on_with_as_many_attempts_as_it_first_had(
    tmp_path: Path, state: str
) -> None:
    launch = ended(tmp_path, state)
    assert launch.view().over
    resubmit(launch)
    view = launch.view()
    assert (view.state, view.over, view.ready) == (State.RESUBMITTING, False, True)
    assert (view.policy.max_attempts, view.policy.budget_usd) == (3 + 3, 5.0)
    again = [event for event in launch.events() if event["type"] == "resubmitting"]
    assert [(one["attempt"], one["message"]) for one in again] == [
        (4, f"launched again after {state}")
    ]


def test_a_launch_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    launch = ended(tmp_path, "FAILED")
    resubmit(launch)
    before = launch.events()
    resubmit(launch)
    assert launch.events() == before


def test_what_is_finished_or_was_never_packed_is_refused_and_nothing_is_logged(
    tmp_path: Path,
) -> None:
    finished = ended(tmp_path / "one", "SUCCEEDED", attempts=1)
    with pytest.raises(InputError, match="is finished"):
        resubmit(finished)
    unpacked = ended(tmp_path / "two", "FAILED", packed=False)
    with pytest.raises(InputError, match="never packed\n  fix: repeat"):
        resubmit(unpacked)
    for launch in (finished, unpacked):
        assert launch.events()[-1]["type"] == "ended"
