"""Faults, recorded calls and the door of the fake cloud: what is refused, dropped and counted."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade.cloud.fake.scenario import Scenario, load
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.config.errors import InputError, OutsideError
from tests.fake_cloud_calls import PLACE, PROJECT, call, create, good, job_body, until

SECRETS = f"/v1/projects/{PROJECT}/secrets"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[FakeCloud]:
    with serve(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (403, "PERMISSION_DENIED"),
        (429, "RESOURCE_EXHAUSTED"),
        (503, "UNAVAILABLE"),
        (500, "INTERNAL"),
    ],
)
def test_a_fault_answers_in_googles_words_as_often_as_it_was_told(
    cloud: FakeCloud, status: int, name: str
) -> None:
    cloud.add_fault("GET .*/customJobs", status=status, times=2, after=1)
    seen = [call(cloud, "GET", f"{PLACE}/customJobs") for _ in range(4)]
    assert [code for code, _ in seen] == [200, status, status, 200]
    assert seen[1][1]["error"]["status"] == name


def test_faults_are_set_listed_and_cleared_over_http(cloud: FakeCloud) -> None:
    good(cloud, "POST", "/fake/faults", {"match": "secrets", "status": 503, "times": "always"})
    assert [call(cloud, "GET", SECRETS)[0] for _ in range(3)] == [503] * 3
    assert good(cloud, "GET", "/fake/faults")["faults"][0]["struck"] == 3
    good(cloud, "DELETE", "/fake/faults")
    good(cloud, "GET", SECRETS)
    assert call(cloud, "POST", "/fake/faults", {"match": "x", "statsu": 503})[0] == 400
    assert call(cloud, "POST", "/fake/faults", {"match": "("})[0] == 400


def test_a_dropped_connection_has_no_answer_and_no_effect(cloud: FakeCloud) -> None:
    cloud.add_fault("POST .*/customJobs", status="drop")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        call(cloud, "POST", f"{PLACE}/customJobs", job_body("pass"))
    assert good(cloud, "GET", f"{PLACE}/customJobs") == {}


@pytest.mark.parametrize("status", ["drop", 503])
def test_an_answer_can_be_lost_after_the_call_took_effect(
    cloud: FakeCloud, status: int | str
) -> None:
    cloud.add_fault("POST .*/customJobs", status=status, when="after")
    try:
        assert call(cloud, "POST", f"{PLACE}/customJobs", job_body("pass"))[0] == 503
    except (http.client.RemoteDisconnected, ConnectionError):
        assert status == "drop"
    assert len(good(cloud, "GET", f"{PLACE}/customJobs")["customJobs"]) == 1


def test_a_slow_call_is_slow_and_then_right(cloud: FakeCloud) -> None:
    cloud.add_fault("secrets", status="slow", seconds=0.2)
    begin = time.monotonic()
    good(cloud, "GET", SECRETS)
    assert time.monotonic() - begin >= 0.2


def test_every_call_is_recorded_with_its_number_and_outcome(cloud: FakeCloud) -> None:
    cloud.add_fault("GET .*secrets", status=503)
    call(cloud, "GET", f"{SECRETS}?pageSize=1")
    path = create(cloud, job_body("pass"))
    first, second = good(cloud, "GET", "/fake/calls")["calls"]
    assert (first["n"], first["status"], first["faults"]) == (1, 503, ["503"])
    assert (second["method"], second["body"]["displayName"]) == ("POST", "job")
    until(cloud, path, "SUCCEEDED")
    assert all(one["n"] > 2 for one in cloud.calls(since=2))
    assert good(cloud, "GET", "/fake/calls?match=POST")["calls"] == [second]


def test_a_reset_forgets_everything_and_ends_jobs(cloud: FakeCloud) -> None:
    path = create(cloud, job_body("import time\ntime.sleep(600)"))
    until(cloud, path, "RUNNING")
    good(cloud, "POST", f"/storage/v1/b?project={PROJECT}", {"name": "some-bucket"})
    cloud.add_fault("x", status=503)
    good(cloud, "POST", "/fake/reset", {})
    assert not cloud.jobs.busy()
    assert cloud.calls() == []
    assert call(cloud, "GET", path)[0] == 404
    assert call(cloud, "GET", "/storage/v1/b/some-bucket")[0] == 404
    until(cloud, create(cloud, job_body("pass")), "SUCCEEDED")


def test_only_this_machine_is_served(cloud: FakeCloud) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=100)
        connection.request("GET", "/fake/health", headers=headers)
        assert connection.getresponse().status == 403
        connection.close()
    assert call(cloud, "GET", "/fake/health", Origin=f"http://localhost:{cloud.port}")[0] == 200
    assert cloud.url.startswith("http://127.0.0.1:")
    addresses = {
        entry[4][0]
        for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        if not str(entry[4][0]).startswith("127.")
    }
    for address in addresses:
        with pytest.raises(OSError):
            socket.create_connection((str(address), cloud.port), timeout=5).close()


def test_unknown_paths_and_broken_bodies_are_the_clients_fault(cloud: FakeCloud) -> None:
    assert call(cloud, "GET", "/v1/nothing/here")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=100)
    connection.request("POST", f"{PLACE}/customJobs", body=b"{not json")
    answer = connection.getresponse()
    assert answer.status == 400
    assert "Invalid JSON" in json.loads(answer.read())["error"]["message"]
    connection.request("POST", f"{PLACE}/customJobs", body=iter([b"[1", b"]"]), encode_chunked=True)
    assert connection.getresponse().status == 400, "chunks are read, and the connection is kept"
    connection.close()


def test_one_state_folder_has_one_server(cloud: FakeCloud) -> None:
    with pytest.raises(OutsideError, match="already runs"):
        serve(cloud.state)


def test_a_port_in_use_is_a_clear_error_and_frees_the_folder(
    cloud: FakeCloud, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    with pytest.raises(OutsideError, match="cannot use port"):
        serve(other, port=cloud.port)
    serve(other).close()


def test_a_scenario_file_is_read_and_its_mistakes_named(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(
        "jobs:\n- [{queued: 0.1}, {running: {until_step: 4}}, preempt, {running: 2}, stockout]\n"
        "faults: [{match: 'POST .*customJobs', status: 429, times: always}]\n"
        "quotas: {custom_model_training_nvidia_l4_gpus: {us-central1: 0, default: 4}}\n"
    )
    scenario = load(file)
    assert scenario.jobs[0][1].running is not None
    assert scenario.jobs[0][3].running == scenario.jobs[0][3].running.model_copy()  # type: ignore
    file.write_text("jobs: [[{runing: 3}]]\n")
    with pytest.raises(InputError, match="runing"):
        load(file)
    file.write_text("jobs: [\n")
    with pytest.raises(InputError, match="YAML"):
        load(file)
    with pytest.raises(InputError, match="no such scenario"):
        load(tmp_path / "none.yaml")
    assert Scenario() == Scenario()
