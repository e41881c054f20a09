"""Everything saccade sends to Google parses in Google's own types, unknown fields refused.

Setup and teardown run against the local cloud, which records their calls; jobs and image builds
are rendered for every machine. Skipped without the official clients (the extra `oracle`).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.cloud.api.transport import connect
from saccade.cloud.apply import apply
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import serve
from saccade.cloud.manifest import Manifest
from saccade.cloud.plan import plan_setup
from saccade.cloud.resources import desired
from saccade.cloud.settings import QuotaNeed, read_settings
from saccade.cloud.teardown import plan_teardown, scan
from saccade.launch.images import build_body
from saccade.launch.machines import MACHINES, Strategy
from saccade.launch.spec import JobSpec
from saccade.launch.targets.vertex_body import custom_job_body
from tests.official_types import aiplatform_v1, cloudbuild_v1, parse

METRIC = "custom_model_training_preemptible_nvidia_l4_gpus"
OFFERS = [
    (name, strategy)
    for name, kind in MACHINES.items() if kind.name != "local"
    for strategy in kind.strategies
]  # fmt: skip


def spec(machine: str, strategy: Strategy, *, replicas: int) -> JobSpec:
    return JobSpec(
        run="demo", token="0123456789ab", attempt=2, recipe="relevance", machine=machine,
        replicas=replicas, strategy=strategy, region="us-central1",
        image="us-central1-docker.pkg.dev/p/saccade/trainer@sha256:" + "0" * 64,
        code="gs://demo/code/x.tar.gz", config="gs://demo/launches/t/config.yaml",
        store="gs://demo", env={"SEED": "1"}, secrets={"HF_TOKEN": "projects/p/secrets/hf"},
        service_account="saccade-trainer@p.iam.gserviceaccount.com", disk_gb=200,
    )  # fmt: skip


@pytest.mark.parametrize(("machine", "strategy"), OFFERS)
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_job_on_any_machine_is_a_custom_job(
    machine: str, strategy: Strategy, replicas: int
) -> None:
    text = json.dumps(custom_job_body(spec(machine, strategy, replicas=replicas)))
    job = aiplatform_v1.CustomJob.from_json(text, ignore_unknown_fields=False)
    assert sum(pool.replica_count for pool in job.job_spec.worker_pool_specs) == replicas
    assert job.job_spec.scheduling.strategy.name in ("SPOT", "FLEX_START", "STANDARD")
    for pool in job.job_spec.worker_pool_specs:
        kind = MACHINES[machine]
        assert bool(pool.machine_spec.accelerator_type) == (kind.gpus > 0)
        assert pool.machine_spec.accelerator_count == kind.gpus
        assert pool.container_spec.image_uri


def test_an_image_build_is_a_build() -> None:
    body = build_body(image="r/p/saccade/trainer:t", tag="t", source=("b", "o"), base="x@sha256:0")
    build = cloudbuild_v1.Build.from_json(json.dumps(body), ignore_unknown_fields=False)
    assert build.images == ["r/p/saccade/trainer:t"]
    assert build.source.storage_source.bucket == "b"


def test_setup_and_teardown_send_official_requests_only(tmp_path: Path) -> None:
    scenario = Scenario(apis="fresh", quotas={METRIC: 0}, quota_requests="pending")
    with serve(tmp_path / "cloud", scenario=scenario) as cloud:
        env = {
            "SACCADE_FAKE_CLOUD": cloud.url, "SACCADE_HOME": str(tmp_path / "home"),
            "GOOGLE_CLOUD_PROJECT": "demo-project", "GOOGLE_CLOUD_ACCOUNT": "me@example.com",
            "HF_TOKEN": "canary-hf", "WANDB_API_KEY": "canary-wandb",
        }  # fmt: skip
        need = QuotaNeed(metric=METRIC, region="us-central1", need=1)
        settings = read_settings(env, quotas=[need])
        google = connect(settings.project, env=env)
        manifest = Manifest(tmp_path / "manifest.json")
        resources = desired(settings)
        plan = plan_setup(google, resources, entries=manifest.entries())
        results = apply(google, plan, manifest=manifest, hear=lambda step, result: None)
        assert [one for one in results if one.status != "done"] == []
        again = plan_setup(google, resources, entries=manifest.entries())
        assert again.steps == ()
        away = plan_teardown(google, settings, entries=manifest.entries(), all_labelled=True)
        apply(google, away, manifest=manifest, hear=lambda step, result: None)
        left, unreadable = scan(google, settings, entries=manifest.entries())
        assert (left, unreadable) == ([], [])
        requests = [parse(call) for call in cloud.calls()]
    kinds = {type(request).__name__ for request in requests if request is not None}
    assert {"CreateSecretRequest", "CreateRepositoryRequest", "SetIamPolicyRequest"} <= kinds
