"""Setup and teardown whatever goes wrong: a fault at every call, then the same command again.

Whatever fails, the record names everything that exists, a second setup makes the rest and a
teardown leaves nothing behind.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.cloud.api.transport import ApiError
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import serve
from tests.cloud_project import CANARY, PATIENT, Project, environment, project

FAULTS = [
    pytest.param({"status": "drop", "times": 1, "when": "after"}, id="done but answer lost"),
    pytest.param({"status": 403, "times": 1}, id="403 once"),
    pytest.param({"status": 503, "times": "always"}, id="503 from here on"),
]


def attempt(work: Callable[[], object]) -> bool:
    """Try; says whether it got through. Only errors for users may come out."""
    try:
        work()
    except ApiError as error:
        assert CANARY not in str(error)
        return False
    return True


def counted(folder: Path, *, of: str) -> int:
    """How many calls a setup, or the teardown after it, makes."""
    with project(folder) as one:
        if of == "teardown":
            one.setup()
        before = one.calls()
        one.setup() if of == "setup" else one.teardown()
        return one.calls() - before


def everything_is_recorded(one: Project) -> None:
    """Whatever carries our labels stands in the record, or is gone."""
    known = set(one.manifest.entries())
    unknown = [left.resource.id for left in one.left() if left.resource.id not in known]
    assert unknown == []


def test_a_second_setup_changes_nothing(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        assert {result.status for result in one.setup()} == {"done"}
        record = one.settings.manifest_file.read_text()
        before = one.calls()
        assert one.setup() == []
        assert one.changes(since=before) == []
        assert one.settings.manifest_file.read_text() == record


def test_a_second_teardown_changes_nothing(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
        one.teardown()
        before = one.calls()
        assert one.teardown() == []
        assert one.changes(since=before) == []
        assert one.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_call_of_setup_leaves_a_state_that_the_next_one_completes(
    tmp_path: Path, fault: dict[str, object]
) -> None:
    total = counted(tmp_path / "count", of="setup")
    for position in range(total):
        with project(tmp_path / str(position)) as one:
            one.cloud.add_fault(".", after=position, **fault)
            attempt(one.setup)
            one.cloud.world.faults.clear()
            everything_is_recorded(one)
            assert [r.message for r in one.setup() if r.status != "done"] == [], position
            assert one.plan().steps == (), position
            assert one.manifest.last_error() is None
            one.teardown()
            assert one.left() == [], position
            assert one.manifest.entries() == {}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_call_of_teardown_leaves_a_state_that_the_next_one_completes(
    tmp_path: Path, fault: dict[str, object]
) -> None:
    total = counted(tmp_path / "count", of="teardown")
    for position in range(total):
        with project(tmp_path / str(position)) as one:
            one.setup()
            one.cloud.add_fault(".", after=position, **fault)
            attempt(one.teardown)
            one.cloud.world.faults.clear()
            everything_is_recorded(one)
            assert [r.message for r in one.teardown() if r.status != "done"] == [], position
            assert one.left() == [], position
            assert one.manifest.entries() == {}, position


def test_a_single_outage_anywhere_is_survived_without_a_second_command(tmp_path: Path) -> None:
    total = counted(tmp_path / "count", of="setup")
    for position in random.Random(0).sample(range(total), 8):
        with project(tmp_path / str(position), patience=PATIENT) as one:
            one.cloud.add_fault(".", after=position, status=503)
            results = one.setup()
            assert [r.message for r in results if r.status != "done"] == [], position


def test_one_refused_step_stops_only_what_needs_it(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.cloud.add_fault(r"^POST \S*/repositories\?", status=403, times="always")
        status = {result.id: result.status for result in one.setup()}
        assert status["repository:us-central1/saccade"] == "failed"
        assert status[f"bucket:{one.settings.bucket}"] == "done"
        skipped = [id_ for id_, word in status.items() if word == "skipped"]
        assert len(skipped) == 1
        assert "artifactregistry.reader" in skipped[0]
        error = one.manifest.last_error()
        assert error is not None
        assert error["step"] == "repository:us-central1/saccade"


@pytest.mark.slow
def test_a_kill_at_any_moment_of_setup_or_teardown_orphans_nothing(tmp_path: Path) -> None:
    scenario = Scenario(apis="fresh", operation_seconds=0.05)
    moments = random.Random(7)
    with serve(tmp_path / "cloud", scenario=scenario) as cloud:
        one_home = tmp_path / "home"
        env = {**os.environ, **environment(cloud, one_home), "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")
        for verb in ("setup", "teardown") * 4:
            killed(verb, env=env, folder=tmp_path, calls=moments.randint(1, 40), cloud=cloud)
            known = re.findall(r'"((?:bucket|repository|account|secret):[^"]+)"',
                               (one_home / "cloud" / "fake-my-project.json").read_text()
                               if (one_home / "cloud").is_dir() else "")  # fmt: skip
            for id_ in existing(cloud):
                assert id_ in known
        assert finished("setup", env=env, folder=tmp_path) == 0
        assert finished("teardown", env=env, folder=tmp_path) == 0
        assert existing(cloud) == []


def killed(verb: str, *, env: dict[str, str], folder: Path, calls: int, cloud: object) -> None:
    """Start a verb and SIGKILL it once the cloud has had so many more calls."""
    start = len(cloud.calls())  # type: ignore[attr-defined]
    child = subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", "cloud", verb, "--yes"],
        cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while child.poll() is None and len(cloud.calls()) - start < calls:  # type: ignore[attr-defined]
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()


def finished(verb: str, *, env: dict[str, str], folder: Path) -> int:
    """Run a verb to its end."""
    command = [sys.executable, "-m", "saccade.cli", "cloud", verb, "--yes"]
    return subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True).returncode


def existing(cloud: object) -> list[str]:
    """Ask the cloud itself which things carry our labels."""
    import requests

    url = cloud.url  # type: ignore[attr-defined]
    root = f"{url}/v1/projects/my-project"
    found = [
        f"bucket:{one['name']}"
        for one in requests.get(f"{url}/storage/v1/b?project=my-project").json().get("items", [])
    ]
    for path, key, kind in (
        ("locations/us-central1/repositories", "repositories", "repository:us-central1/"),
        ("secrets", "secrets", "secret:"),
        ("serviceAccounts", "accounts", "account:"),
    ):
        answer = requests.get(f"{root}/{path}").json()
        found += [kind + one["name"].rpartition("/")[2] for one in answer.get(key, [])]
    return found
