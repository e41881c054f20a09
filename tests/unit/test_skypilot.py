"""The SkyPilot export: its schema, and a run section that really survives being started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from saccade.launch.exports.skypilot import ACCELERATORS, Task, check_task, render, task_body
from saccade.launch.machines import MACHINES, Strategy


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "run": "relevance", "machine": "a2-highgpu-4g", "replicas": 1, "strategy": Strategy.SPOT,
        "regions": [], "disk_gb": 200, "bucket": "my-bucket", "secrets": ["WANDB_API_KEY"],
    }  # fmt: skip
    return Task(**(values | changes))


def test_a_task_has_spot_recovery_and_its_bucket() -> None:
    body = task_body(task(regions=["us-east4", "europe-west4"]), config_file="./c.yaml")
    resources = body["resources"]
    assert resources["use_spot"] is True
    assert resources["accelerators"] == "A100:4"
    assert resources["job_recovery"]["recover_on_exit_codes"] == [143]
    assert [one["infra"] for one in resources["any_of"]] == ["gcp/us-east4", "gcp/europe-west4"]
    assert body["file_mounts"]["/store"] == {"mode": "MOUNT", "source": "gs://my-bucket"}


def test_secrets_have_names_and_no_values() -> None:
    files = render(
        task(secrets=["WANDB_API_KEY", "HF_TOKEN"]), config="a: 1\n", file=Path("t.yaml")
    )
    body = yaml.safe_load(files["t.yaml"])
    assert body["secrets"] == {"WANDB_API_KEY": None, "HF_TOKEN": None}
    assert files["t.config.yaml"] == "a: 1\n"
    assert body["file_mounts"]["/job/config.yaml"] == "./t.config.yaml"


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("bucket", ["my-bucket", None])
def test_every_machine_gives_a_valid_task(name: str, bucket: str | None) -> None:
    body = task_body(task(machine=name, bucket=bucket, replicas=2), config_file="./c.yaml")
    assert check_task(body) == []
    accelerator = MACHINES[name].accelerator_type
    assert accelerator is None or accelerator in ACCELERATORS


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("resources", "spot"), True, "resources.spot: unknown key"),
        (("resources", "use_spot"), "yes", "resources.use_spot: expected bool"),
        (("resources", "disk_size"), True, "resources.disk_size: expected int or str"),
        (("resources", "infra"), "vertex/us-central1", "resources.infra: "),
        (("resources", "job_recovery"), {"retries": 3}, "job_recovery.retries: unknown key"),
        (("num_nodes",), "2", "num_nodes: expected int"),
        (("secrets",), {"bad-name": None}, "secrets.bad-name: "),
        (("file_mounts",), {"/store": {"mode": "MOUNT"}}, "file_mounts./store: a name or a source"),
        (("name",), "1st run", "name: "),
    ],
)
def test_mistakes_are_named(path: tuple[str, ...], value: Any, said: str) -> None:
    body = task_body(task(), config_file="./c.yaml")
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert [problem for problem in check_task(body) if said in problem]


def run_section(tmp_path: Path, trainer: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the real script in bash; `python` and the venv are stand-ins, the store is a folder."""
    home, tools = tmp_path / "home", tmp_path / "tools"
    activate = home / "saccade-venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True, exist_ok=True)
    activate.write_text("")
    tools.mkdir(exist_ok=True)
    for name in ("python", "torchrun"):
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $@" >> "$CALLS"\n{trainer}\n')
        (tools / name).chmod(0o755)
    values = {
        "HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"), "SACCADE_RUN": "relevance",
        "SACCADE_STORE": str(tmp_path / "store"),
    }  # fmt: skip
    script = task_body(task(), config_file="./c.yaml")["run"]
    return subprocess.run(
        ["bash", "-c", script], env=values | env, capture_output=True, text=True, check=False
    )


DONE = 'mkdir -p "$SACCADE_STORE/runs/relevance"; touch "$SACCADE_STORE/runs/relevance/DONE"'


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    assert run_section(tmp_path, DONE).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 1
    assert "-m saccade.cli train --config /job/config.yaml run.name=relevance" in calls[0]
    again = run_section(tmp_path, DONE)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert (tmp_path / "calls").read_text().splitlines() == calls


@pytest.mark.parametrize(
    ("trainer", "code"), [("exit 143", 143), ("exit 1", 1), ("exit 0", 143)]
)  # fmt: skip
def test_nothing_but_done_is_a_success(tmp_path: Path, trainer: str, code: int) -> None:
    assert run_section(tmp_path, trainer).returncode == code


def test_several_gpus_and_nodes_go_through_torchrun(tmp_path: Path) -> None:
    nodes = {
        "SKYPILOT_NUM_GPUS_PER_NODE": "4", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }  # fmt: skip
    assert run_section(tmp_path, "exit 0", **nodes).returncode == 0  # rank 1 leaves DONE to rank 0
    call = (tmp_path / "calls").read_text()
    assert call.startswith("torchrun --nnodes=2 --node-rank=1 --nproc-per-node=4")
    assert "--master-addr=10.0.0.1" in call


def test_the_verb_writes_a_checked_task(tmp_path: Path) -> None:
    env = {name: text for name, text in os.environ.items() if not name.startswith("GOOGLE")}
    command = [
        sys.executable, "-m", "saccade.cli", "export", "skypilot", "tracking.wandb=online",
        "--out", "sky.yaml",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=env | {"WANDB_API_KEY": "canary-5e1f00d"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "sky.yaml").read_text()
    assert check_task(yaml.safe_load(text)) == []
    assert "canary" not in text + (tmp_path / "sky.config.yaml").read_text() + done.stderr
    assert "--secret WANDB_API_KEY" in done.stderr
