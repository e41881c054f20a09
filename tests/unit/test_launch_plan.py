"""Planning: tokens, what is shipped, what it costs at most, and that no secret is in it."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saccade.cloud.fake.server import serve
from saccade.cloud.findings import Level
from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import resolve
from saccade.launch import begin
from saccade.launch.drive import tick
from saccade.launch.plan import LaunchPlan, plan_launch
from saccade.launch.states import State

CANARY = f"canary-{uuid.uuid4()}"
"""Made anew each time: a value that stood in this file would be packed with it, and refused."""


def plan(tmp_path: Path, *words: str, env: dict[str, str] | None = None, **more: Any) -> LaunchPlan:
    overrides = [f"run.root={tmp_path}/runs", "run.name=mine", *words]
    home = {"SACCADE_HOME": str(tmp_path / "home")}
    return plan_launch(
        resolve("smoke/relevance", overrides=overrides), env=home | (env or {}), **more
    )


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[dict[str, str]]:
    with serve(tmp_path / "cloud") as server:
        yield {"SACCADE_FAKE_CLOUD": server.url}


def test_the_same_run_configuration_and_code_have_one_token(tmp_path: Path) -> None:
    first, again = plan(tmp_path), plan(tmp_path)
    assert first.spec.token == again.spec.token
    assert plan(tmp_path, "training.steps=7").spec.token != first.spec.token
    assert plan(tmp_path, "run.name=other").spec.token != first.spec.token


def test_limits_change_no_token(tmp_path: Path) -> None:
    limits = ["launch.budget=5", "launch.max_attempts=9", "launch.wait_minutes=1"]
    other = plan(tmp_path, *limits)
    assert other.spec.token == plan(tmp_path).spec.token
    assert (other.policy.budget_usd, other.policy.max_attempts, other.policy.wait_s) == (5, 9, 60)


def test_a_region_that_only_the_price_list_knows_has_its_quota_read(
    tmp_path: Path, cloud: dict[str, str]
) -> None:
    from saccade.cloud.api.transport import connect
    from saccade.launch.candidates import in_google_cloud
    from saccade.launch.prices import load_prices

    known = load_prices(home=tmp_path, fake=True)
    prices = replace(known, seen={"a2-highgpu-1g": frozenset({"us-central1", "us-east5"})})
    config = resolve("smoke/relevance").config
    choice = in_google_cloud(
        config, google=connect(None, env=cloud), prices=prices, store_region=None
    )
    quotas = {row["region"]: row["quota"] for row in choice.ranking}
    assert quotas == {"us-central1": 8, "us-east5": 8}


def test_a_token_may_be_given_and_must_fit_into_labels(tmp_path: Path) -> None:
    assert plan(tmp_path, token="nightly-7").launch.key == "mine-nightly-7"
    with pytest.raises(InputError, match="--token"):
        plan(tmp_path, token="../up")


def test_a_run_name_cannot_leave_its_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.name"):
        plan(tmp_path, "run.name=../up")


def test_the_local_plan_is_one_free_place_and_the_train_verb(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert [(offer.region, offer.usd_per_hour) for offer in made.offers] == [("local", 0.0)]
    command = made.request["command"]
    assert command[1:4] == ["-m", "saccade.cli", "train"]
    assert command[-1].endswith("config.yaml")
    assert not made.launch.folder.exists()  # planning makes nothing


def test_several_gpus_are_run_under_torchrun(tmp_path: Path) -> None:
    made = plan(tmp_path, "model.device=auto", env={"CUDA_VISIBLE_DEVICES": "0,1,2"})
    assert "torch.distributed.run" in made.request["command"]
    assert "--nproc-per-node=3" in made.request["command"]
    alone = plan(tmp_path, "model.device=cpu", env={"CUDA_VISIBLE_DEVICES": "0,1,2"})
    assert "torch.distributed.run" not in alone.request["command"]


def test_several_machines_are_refused_here(tmp_path: Path) -> None:
    made = plan(tmp_path, "launch.replicas=2")
    assert any(one.level is Level.BLOCK and one.name == "replicas" for one in made.findings)
    with pytest.raises(OutsideError, match=r"nothing was launched[\s\S]*launch.replicas=1"):
        begin.refuse_blocked(made)


def test_a_cloud_plan_is_priced_ranked_and_rendered(tmp_path: Path, cloud: dict[str, str]) -> None:
    made = plan(
        tmp_path, "launch.target=fake", "launch.hours=2", "launch.machine=a2-highgpu-1g", env=cloud
    )
    prices = [offer.usd_per_hour or 0.0 for offer in made.offers]
    assert prices == sorted(prices)
    assert len(prices) >= 2
    estimate = made.choice.estimate or {}
    assert 0 < estimate["low"]["total"] < estimate["expected"]["total"] < estimate["high"]["total"]
    assert "days old" in made.choice.source
    body = made.request["body"]
    assert body["jobSpec"]["scheduling"]["strategy"] == "SPOT"
    assert body["labels"]["token"] == made.spec.token


def test_a_budget_shortens_the_hard_time_limit(tmp_path: Path, cloud: dict[str, str]) -> None:
    words = ["launch.target=fake", "launch.machine=a2-highgpu-1g"]
    free = plan(tmp_path, *words, env=cloud)
    tight = plan(tmp_path, *words, "launch.budget=4", env=cloud)
    assert free.spec.timeout_s == 24 * 3600
    assert 1 * 3600 < tight.spec.timeout_s < 2.2 * 3600


def test_regions_that_are_not_allowed_or_lack_the_machine_block(
    tmp_path: Path, cloud: dict[str, str]
) -> None:
    made = plan(
        tmp_path, "launch.target=fake", "launch.machine=a2-ultragpu-1g",
        "launch.regions=[us-west4]", env=cloud,
    )  # fmt: skip
    assert made.offers == ()
    found = next(one for one in made.findings if one.name == "place")
    assert found.level is Level.BLOCK


def test_a_missing_bucket_stops_before_any_spend(tmp_path: Path, cloud: dict[str, str]) -> None:
    made = plan(tmp_path, "launch.target=fake", env=cloud)
    with pytest.raises(OutsideError, match=r"bucket[\s\S]*saccade cloud setup"):
        begin.refuse_blocked(made)


def test_no_secret_value_is_in_plan_log_job_or_config(
    tmp_path: Path, cloud: dict[str, str]
) -> None:
    env = cloud | {"WANDB_API_KEY": CANARY, "HF_TOKEN": CANARY + "2"}
    made = plan(tmp_path, "launch.target=fake", env=env)
    assert set(made.spec.secrets) == {"WANDB_API_KEY", "HF_TOKEN"}
    text = json.dumps(made.to_json(), default=str) + json.dumps(made.planned(), default=str)
    assert CANARY not in text + made.config_text
    assert "secrets/saccade-wandb-api-key" in text
    assert made.archive is not None
    assert CANARY.encode() not in made.archive.path.read_bytes()


def test_launching_twice_joins_and_a_second_launch_of_a_busy_run_is_refused(tmp_path: Path) -> None:
    first = plan(tmp_path)
    assert begin.standing(first) is begin.Standing.NEW
    driver = begin.begin(first, say=lambda text: None)
    first.launch.append("submitting", attempt=1, offer=0)
    assert begin.standing(plan(tmp_path)) is begin.Standing.ACTIVE
    with pytest.raises(InputError, match="another launch of this run goes on"):
        begin.standing(plan(tmp_path, "training.steps=9"))
    assert driver.launch.key == first.launch.key


def test_a_launch_that_ended_badly_is_continued_with_new_attempts(tmp_path: Path) -> None:
    made = plan(tmp_path, "launch.max_attempts=3")
    begin.begin(made, say=lambda text: None)
    made.launch.append("submitting", attempt=1, offer=0)
    made.launch.append("ended", state="FAILED", message="it broke", exit_code=1)
    again = plan(tmp_path, "launch.max_attempts=3")
    assert begin.standing(again) is begin.Standing.ENDED
    begin.begin(again, say=lambda text: None)
    view = again.launch.view()
    assert (view.state, view.attempt, view.policy.max_attempts) == (State.RESUBMITTING, 2, 4)


def test_a_log_alone_reopens_its_target(tmp_path: Path) -> None:
    made = plan(tmp_path)
    begin.begin(made, say=lambda text: None)
    driver = begin.reopen(made.launch, env={})
    assert driver.target.name == "local"
    assert driver.launch.view().ready


def test_a_launch_killed_before_it_was_packed_asks_for_its_command(tmp_path: Path) -> None:
    made = plan(tmp_path)
    made.launch.append("planned", **made.planned())
    view = tick(begin.reopen(made.launch, env={}))
    assert view.state is State.PLANNED
    assert begin.standing(plan(tmp_path)) is begin.Standing.NEW


def test_the_launch_verbs_load_no_torch() -> None:
    code = (
        "import sys, saccade.cli_launch, saccade.launch.begin, saccade.launch.shown,"
        " saccade.launch.candidates, saccade.launch.targets.local, saccade.launch.targets.fake;"
        "print(sorted({'torch', 'transformers', 'google.cloud.storage'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
