"""`saccade cloud ...` in a process of its own, against a fake cloud: what a person sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from saccade_cli import Outcome, refused, saccade

from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from tests.cloud_project import CANARY, environment

BUCKET = "my-project-saccade-us-central1"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[FakeCloud]:
    with serve(tmp_path / "cloud", scenario=Scenario(apis="fresh")) as made:
        yield made


def call(cloud: FakeCloud, folder: Path, *words: str, **env: str) -> Outcome:
    """Run a verb of the group; its output never holds the secret."""
    values = environment(cloud, folder / "home") | env
    outcome = saccade("cloud", *words, folder=folder, env=values)
    assert CANARY not in outcome.out + outcome.err
    assert "Traceback" not in outcome.err, outcome.err
    return outcome


def test_the_whole_life_of_a_project(cloud: FakeCloud, tmp_path: Path) -> None:
    before = call(cloud, tmp_path, "status", "--json")
    assert before.code == 3
    missing = [one for one in json.loads(before.out)["findings"] if one["level"] == "block"]
    assert missing
    assert all(one["fix"].startswith("saccade cloud setup") for one in missing)

    dry = call(cloud, tmp_path, "setup", "--dry-run")
    assert dry.code == 0
    assert "/storage/v1/b?project=my-project" in dry.out
    assert "value not shown" in dry.out
    assert not (tmp_path / "home").exists()

    made = call(cloud, tmp_path, "setup", "--yes", "--json")
    assert made.code == 0, made.err
    assert {one["status"] for one in json.loads(made.out)["results"]} == {"done"}
    assert made.err.count("done ") == len(json.loads(made.out)["results"])
    again = call(cloud, tmp_path, "setup", "--yes")
    assert again.code == 0
    assert "nothing to do" in again.err

    after = call(cloud, tmp_path, "status")
    assert after.code == 0, after.out
    assert "saccade-trainer" in after.out

    gone = call(cloud, tmp_path, "teardown", "--yes")
    assert gone.code == 0, gone.err
    assert "nothing of saccade's is left" in gone.err


def test_a_bucket_with_finished_runs_needs_its_name(cloud: FakeCloud, tmp_path: Path) -> None:
    import requests

    assert call(cloud, tmp_path, "setup", "--yes").code == 0
    url = f"{cloud.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=runs/best/DONE"
    assert requests.post(url, data=b"{}", timeout=60).ok
    dry = call(cloud, tmp_path, "teardown", "--dry-run")
    assert dry.code == 0
    assert "1 finished run(s): best" in dry.err
    text = refused(call(cloud, tmp_path, "teardown", "--yes"), code=2)
    assert f"--confirm {BUCKET}" in text
    text = refused(call(cloud, tmp_path, "teardown", "--yes", "--confirm", "other"), code=2)
    assert call(cloud, tmp_path, "teardown", "--yes", "--confirm", BUCKET).code == 0


def test_leftovers_are_listed_with_their_cost_and_leave_with_3(
    cloud: FakeCloud, tmp_path: Path
) -> None:
    assert call(cloud, tmp_path, "setup", "--yes").code == 0
    cloud.add_fault(rf"^DELETE /storage/v1/b/{BUCKET}$", status=403, times="always")
    first = call(cloud, tmp_path, "teardown", "--yes")
    assert first.code == 3
    assert "per month" in first.out
    assert BUCKET in first.out
    cloud.world.faults.clear()
    second = call(cloud, tmp_path, "teardown", "--yes", "--json")
    assert second.code == 0
    assert json.loads(second.out)["leftovers"] == []


def test_status_names_the_last_error_and_the_command_that_mends_it(
    cloud: FakeCloud, tmp_path: Path
) -> None:
    cloud.add_fault(r"^POST /storage/v1/b\?", status=403, times="always")
    failed = call(cloud, tmp_path, "setup", "--yes")
    assert failed.code == 3
    assert "the same command continues" in failed.err
    cloud.world.faults.clear()
    shown = json.loads(call(cloud, tmp_path, "status", "--json").out)["findings"]
    last = next(one for one in shown if one["name"] == "last error")
    assert last["fix"] == "saccade cloud setup --only bucket"
    assert call(cloud, tmp_path, "setup", "--yes").code == 0
    shown = json.loads(call(cloud, tmp_path, "status", "--json").out)["findings"]
    assert not [one for one in shown if one["name"] == "last error"]


def test_mistakes_are_named_before_anything_happens(cloud: FakeCloud, tmp_path: Path) -> None:
    assert "expected some of" in refused(
        call(cloud, tmp_path, "setup", "--only", "buckets"), code=2
    )
    text = refused(call(cloud, tmp_path, "setup", "--machine", "a2-highgpu-1x"), code=2)
    assert "a2-highgpu-1g" in text
    text = refused(call(cloud, tmp_path, "status", GOOGLE_CLOUD_REGION="us-central1-a"), code=2)
    assert "not a zone" in text
    no_project = saccade("cloud", "setup", folder=tmp_path, env={"SACCADE_HOME": str(tmp_path)})
    assert "--fake" in refused(no_project, code=2)


def test_without_a_login_one_line_says_how_to_log_in(tmp_path: Path) -> None:
    env = {
        "GOOGLE_CLOUD_PROJECT": "my-project",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "absent.json"),
        "SACCADE_HOME": str(tmp_path / "home"),
    }
    outcome = saccade("cloud", "setup", "--dry-run", folder=tmp_path, env=env)
    assert "gcloud auth application-default login" in refused(outcome, code=3)
    status = saccade("cloud", "status", folder=tmp_path, env=env)
    assert status.code == 3
    assert "gcloud auth application-default login" in status.out
