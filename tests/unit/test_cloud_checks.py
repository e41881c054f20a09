"""What `cloud status` finds, how much it matters and which command mends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from saccade.cloud.checks import Finding, Level, blocking, cloud_status, key_checks
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.resources import desired
from saccade.cloud.settings import QuotaNeed, read_settings
from tests.cloud_project import CANARY, Project, project

METRIC = "custom_model_training_preemptible_nvidia_l4_gpus"


def found(one: Project) -> dict[str, Finding]:
    """Check everything, by name."""
    findings = cloud_status(
        one.google, one.settings, desired(one.settings), manifest=one.manifest, env={}
    )
    return {finding.name: finding for finding in findings}


def test_a_project_that_is_set_up_has_nothing_blocking(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
        assert blocking(found(one).values()) == []


def test_every_missing_thing_blocks_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with project(tmp_path, scenario=Scenario()) as one:
        for name, finding in found(one).items():
            if finding.level is Level.BLOCK:
                assert finding.fix.startswith("saccade cloud setup --only "), name
        assert found(one)[f"bucket:{one.settings.bucket}"].level is Level.BLOCK


def test_billing_that_is_off_blocks_with_the_command(tmp_path: Path) -> None:
    with project(tmp_path, scenario=Scenario(billing=False)) as one:
        finding = found(one)["billing"]
        assert finding.level is Level.BLOCK
        assert "gcloud billing projects link my-project" in finding.fix


def test_quota_too_small_blocks_and_unlisted_quota_is_unknown(tmp_path: Path) -> None:
    needs = (QuotaNeed(METRIC, "us-central1", 4), QuotaNeed("nothing_of_it", "us-central1", 1))
    scenario = Scenario(quotas={METRIC: 1})
    with project(tmp_path, scenario=scenario, quotas=needs) as one:
        findings = found(one)
        short = findings[f"quota:{METRIC}@us-central1"]
        assert (short.level, short.have, short.need) == (Level.BLOCK, 1, 4)
        assert short.fix == "saccade cloud setup --only quota"
        unknown = findings["quota:nothing_of_it@us-central1"]
        assert (unknown.level, unknown.have, unknown.need) == (Level.UNKNOWN, None, 1)


def test_without_an_address_nothing_is_asked_and_the_lack_still_blocks(tmp_path: Path) -> None:
    needs = (QuotaNeed(METRIC, "us-central1", 4),)
    scenario = Scenario(quotas={METRIC: 1})
    with project(tmp_path, scenario=scenario, quotas=needs, GOOGLE_CLOUD_ACCOUNT="") as one:
        short = found(one)[f"quota:{METRIC}@us-central1"]
        assert short.level is Level.BLOCK
        assert "GOOGLE_CLOUD_ACCOUNT" in short.fix
        assert [step for step in one.plan().steps if step.resource.group == "quota"] == []


def test_a_cloud_that_does_not_answer_is_unknown_not_broken(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.cloud.close()
        findings = found(one)
        assert findings["credentials"].level is Level.UNKNOWN
        assert blocking(findings.values()) == []


@contextmanager
def key_server(*, status: int, body: object) -> Iterator[tuple[str, list[str]]]:
    """Answer everything alike; yields the address and the words it was authorised with."""
    words: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            words.append(self.headers.get("Authorization", ""))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", words
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "level"),
    [
        (200, {"data": {"viewer": {"username": "ann"}}, "name": "ann"}, Level.OK),
        (401, {}, Level.BLOCK),
        (500, {}, Level.UNKNOWN),
    ],
)
def test_keys_are_asked_for_at_their_own_service(status: int, body: object, level: Level) -> None:
    keys = {"WANDB_API_KEY": CANARY, "HF_TOKEN": CANARY}
    settings = read_settings({"GOOGLE_CLOUD_PROJECT": "my-project"} | keys)
    with key_server(status=status, body=body) as (url, words):
        findings = key_checks(settings, env={"WANDB_BASE_URL": url, "HF_ENDPOINT": url})
    assert [finding.level for finding in findings] == [level, level]
    assert len(words) == 2
    assert CANARY not in repr(findings)


def test_a_key_that_w_and_b_does_not_know_blocks() -> None:
    settings = read_settings({"GOOGLE_CLOUD_PROJECT": "my-project", "WANDB_API_KEY": CANARY})
    with key_server(status=200, body={"data": {"viewer": None}}) as (url, _):
        finding = key_checks(settings, env={"WANDB_BASE_URL": url})[0]
    assert finding.level is Level.BLOCK
    assert "wandb.ai/authorize" in finding.fix


def test_offline_keys_are_unknown_and_never_sent_while_the_stand_in_is_used() -> None:
    env = {"GOOGLE_CLOUD_PROJECT": "my-project", "WANDB_API_KEY": CANARY, "HF_TOKEN": CANARY}
    closed = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HF_ENDPOINT": "http://127.0.0.1:9"}
    for finding in key_checks(read_settings(env), env=closed):
        assert finding.level is Level.UNKNOWN
        assert CANARY not in finding.message
    fake = read_settings(env | {"SACCADE_FAKE_CLOUD": "http://127.0.0.1:1"})
    with key_server(status=200, body={}) as (url, words):
        findings = key_checks(fake, env={"WANDB_BASE_URL": url, "HF_ENDPOINT": url})
    assert {finding.level for finding in findings} == {Level.UNKNOWN}
    assert words == []
