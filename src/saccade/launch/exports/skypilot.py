"""A SkyPilot task that trains, is preempted, and goes on: one YAML file for `sky jobs launch`.

A resolved configuration flows in, the texts of a task file and its configuration flow out. The run
section is safe to start again at any time: it ends at once when the store has DONE, resumes from
the newest checkpoint there, and never succeeds without DONE. `check_task` holds the part of
SkyPilot's schema that is used here; the package itself (582 MB) is not needed.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saccade.config.errors import InputError
from saccade.launch.machines import Strategy, machine

STORE = "/store"
CONFIG = "/job/config.yaml"
PREEMPTED = 143

ACCELERATORS: Mapping[str, str] = {
    "NVIDIA_TESLA_T4": "T4",
    "NVIDIA_L4": "L4",
    "NVIDIA_TESLA_A100": "A100",
    "NVIDIA_A100_80GB": "A100-80GB",
    "NVIDIA_H100_80GB": "H100",
    "NVIDIA_H100_MEGA_80GB": "H100-MEGA",
    "NVIDIA_H200_141GB": "H200",
    "NVIDIA_B200": "B200",
    "NVIDIA_RTX_PRO_6000": "RTXPRO6000",
}
"""Vertex AI's names -> SkyPilot's."""

NOTES = (
    "SkyPilot rents Compute Engine machines: their quota is not Vertex AI's.",
    "It sends usage data unless SKYPILOT_DISABLE_USAGE_COLLECTION=1 is set.",
    "Secrets have no value here: null makes `sky jobs launch --secret NAME` ask your environment.",
    "A jobs controller runs, and is paid for, as long as there are managed jobs.",
    "workdir follows .gitignore: .env and runs/ stay here.",
)


@dataclass(frozen=True)
class Task:
    """What a task is made of."""

    run: str
    machine: str
    replicas: int
    strategy: Strategy
    regions: Sequence[str]
    disk_gb: int
    bucket: str | None
    """Existing bucket; None lets SkyPilot make one for this run, which it keeps."""
    secrets: Sequence[str]
    max_errors: int = 1


def render(task: Task, *, config: str, file: Path) -> dict[str, str]:
    """Write the task file and the resolved configuration beside it: name -> text.

    SkyPilot reads paths from where it is called, which is the checkout.
    """
    config_file = file.with_name(re.sub(r"\.ya?ml$", "", file.name) + ".config.yaml")
    place = config_file.as_posix()
    body = task_body(task, config_file=place if config_file.is_absolute() else f"./{place}")
    problems = check_task(body)
    if problems:
        raise InputError("the SkyPilot task is not valid: " + "; ".join(problems))
    secrets = "".join(f" --secret {one}" for one in task.secrets)
    head = [
        f"Train {task.run} with SkyPilot; started again, it continues where it was:",
        f"  sky jobs launch {file}{secrets}",
        "called in the checkout of saccade, which is what is sent (workdir).",
        *NOTES,
    ]
    text = "".join(f"# {line}\n" for line in head)
    return {file.name: text + dump(body), config_file.name: config}


def task_body(task: Task, *, config_file: str) -> dict[str, Any]:
    """Return the task as plain values."""
    kind = machine(task.machine)
    resources: dict[str, Any] = {
        "use_spot": task.strategy is Strategy.SPOT,
        "disk_size": task.disk_gb,
        "labels": {"app": "saccade"},
        "job_recovery": {
            # a preempted region is likely to preempt again
            "strategy": "EAGER_NEXT_REGION",
            "max_restarts_on_errors": task.max_errors,
            # the trainer saved itself and says so: not an error
            "recover_on_exit_codes": [PREEMPTED],
        },
    }
    if kind.accelerator_type is not None:
        resources["accelerators"] = f"{ACCELERATORS[kind.accelerator_type]}:{kind.gpus}"
    else:
        resources |= {"cpus": f"{kind.vcpus}+", "memory": f"{kind.memory_gib:g}+"}
    if len(task.regions) == 1:
        resources["infra"] = f"gcp/{task.regions[0]}"
    elif task.regions:
        resources["any_of"] = [{"infra": f"gcp/{region}"} for region in task.regions]
    else:
        resources["infra"] = "gcp"
    store: dict[str, Any] = {"mode": "MOUNT"}
    if task.bucket:
        store["source"] = f"gs://{task.bucket}"
    else:
        store |= {"name": _bucket_name(task.run), "store": "gcs", "persistent": True}
    return {
        "name": _cluster_name(task.run),
        "num_nodes": task.replicas,
        "resources": resources,
        "workdir": ".",
        "file_mounts": {STORE: store, CONFIG: config_file},
        "envs": {
            "SACCADE_RUN": task.run,
            "SACCADE_STORE": STORE,
            # the file has all values: no .training of the checkout comes on top
            "SACCADE_CONFIG": CONFIG,
            "PYTHONUNBUFFERED": "1",
        },
        "secrets": dict.fromkeys(task.secrets),
        "setup": _setup(),
        "run": _run(),
    }


def dump(body: Mapping[str, Any]) -> str:
    """Write YAML with scripts as blocks, as people would."""

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump(dict(body), Dumper=Dumper, sort_keys=False, width=100)


def _setup() -> str:
    return textwrap.dedent(
        """\
        set -e
        # the venv outlives restarts on the same machine; torch goes first and alone, any other
        # requirement resolved earlier would choose its build
        python3 -m venv ~/saccade-venv
        . ~/saccade-venv/bin/activate
        pip install --quiet -c constraints.txt "$(grep '^torch==' constraints.txt)"
        pip install --quiet -c constraints.txt '.[train,cloud]'
        """
    )


def _run() -> str:
    return textwrap.dedent(
        f"""\
        set -e
        . ~/saccade-venv/bin/activate
        done="$SACCADE_STORE/runs/$SACCADE_RUN/DONE"
        if [ -f "$done" ]; then echo "finished already: $done"; exit 0; fi
        # one W&B run over all restarts
        export WANDB_RUN_ID="$SACCADE_RUN" WANDB_RESUME=allow
        nodes="${{SKYPILOT_NUM_NODES:-1}}" gpus="${{SKYPILOT_NUM_GPUS_PER_NODE:-0}}"
        # run.store makes the same command resume from the newest checkpoint in the bucket
        set -- -m saccade.cli train --config {CONFIG} \\
          run.name="$SACCADE_RUN" run.store="$SACCADE_STORE"
        code=0
        if [ "$nodes" -gt 1 ] || [ "$gpus" -gt 1 ]; then
          head="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"
          torchrun --nnodes="$nodes" --node-rank="$SKYPILOT_NODE_RANK" --nproc-per-node="$gpus" \\
            --master-addr="$head" --master-port=29500 "$@" || code=$?
        else
          python "$@" || code=$?
        fi
        if [ "$code" -ne 0 ]; then exit "$code"; fi
        # never a success without DONE: {PREEMPTED} asks for another attempt
        if [ "${{SKYPILOT_NODE_RANK:-0}}" -eq 0 ] && [ ! -f "$done" ]; then
          echo "the training ended without $done" >&2; exit {PREEMPTED}
        fi
        """
    )


def _cluster_name(run: str) -> str:
    text = re.sub(r"[^a-z0-9-]+", "-", f"saccade-{run}".lower()).strip("-")
    return text[:50].rstrip("-")


def _bucket_name(run: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", f"saccade-{run}".lower()).strip("-")[:60].rstrip("-")


# SkyPilot's task schema, as far as it is used here. A type is checked exactly: YAML's true is no
# number, and an unknown key is refused, as SkyPilot refuses it.

_RECOVERY = {
    "strategy": (str, type(None)),
    "max_restarts_on_errors": int,
    "recover_on_exit_codes": (int, list),
}
_RESOURCES = {
    "infra": str, "accelerators": (str, dict, list), "cpus": (str, int, float),
    "memory": (str, int, float), "instance_type": str, "use_spot": bool, "disk_size": (int, str),
    "disk_tier": str, "network_tier": str, "image_id": (str, dict), "labels": dict,
    "job_recovery": (str, dict), "any_of": list, "ordered": list, "max_hourly_cost": (int, float),
}  # fmt: skip
_STORAGE = {
    "name": str, "source": (str, list), "store": str, "persistent": bool, "mode": str,
    "mount_options": str, "config": dict,
}  # fmt: skip
_TASK = {
    "name": str, "num_nodes": int, "resources": dict, "workdir": (str, dict), "file_mounts": dict,
    "envs": dict, "secrets": (dict, list), "setup": str, "run": str, "config": dict,
    "volumes": dict,
}  # fmt: skip
_INFRA = re.compile(r"(aws|azure|gcp|lambda|runpod|nebius|oci|kubernetes|k8s|\*)(/[^/]+){0,2}")
_MODES = ("MOUNT", "COPY", "MOUNT_CACHED")
_STORES = ("S3", "GCS", "AZURE", "R2", "IBM", "OCI", "NEBIUS")
_VARIABLE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_CLUSTER = re.compile(r"[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?")


def check_task(task: Mapping[str, Any]) -> list[str]:
    """Check a task against the schema; returns what is wrong, key by key."""
    problems = _fields(task, _TASK, where="")
    if "name" in task and not _CLUSTER.fullmatch(str(task["name"])):
        problems.append(f"name: {task['name']!r} is no cluster name")
    resources = task.get("resources") or {}
    problems += _resources(resources, where="resources")
    for step, one in enumerate(resources.get("any_of") or []):
        problems += _resources(one, where=f"resources.any_of[{step}]")
    for target, mount in (task.get("file_mounts") or {}).items():
        if isinstance(mount, Mapping):
            problems += _storage(mount, where=f"file_mounts.{target}")
        elif not isinstance(mount, str):
            problems.append(f"file_mounts.{target}: a path or a store")
    for section in ("envs", "secrets"):
        for name, value in dict(task.get(section) or {}).items():
            if not _VARIABLE.fullmatch(str(name)):
                problems.append(f"{section}.{name}: not the name of a variable")
            if not isinstance(value, str | None):
                problems.append(f"{section}.{name}: text or null")
    return problems


def _resources(found: Mapping[str, Any], *, where: str) -> list[str]:
    problems = _fields(found, _RESOURCES, where=where)
    if "infra" in found and not _INFRA.fullmatch(str(found["infra"])):
        problems.append(f"{where}.infra: {found['infra']!r} is not cloud[/region[/zone]]")
    recovery = found.get("job_recovery")
    if isinstance(recovery, Mapping):
        problems += _fields(recovery, _RECOVERY, where=f"{where}.job_recovery")
        codes = recovery.get("recover_on_exit_codes")
        listed = codes if isinstance(codes, list) else []
        if any(not isinstance(code, int) or not 0 <= code <= 255 for code in listed):
            problems.append(f"{where}.job_recovery.recover_on_exit_codes: 0 to 255")
    return problems


def _storage(found: Mapping[str, Any], *, where: str) -> list[str]:
    problems = _fields(found, _STORAGE, where=where)
    if str(found.get("mode", "MOUNT")).upper() not in _MODES:
        problems.append(f"{where}.mode: one of {', '.join(_MODES)}")
    if str(found.get("store", "GCS")).upper() not in _STORES:
        problems.append(f"{where}.store: one of {', '.join(_STORES)}")
    if "name" not in found and "source" not in found:
        problems.append(f"{where}: a name or a source")
    return problems


def _fields(found: Mapping[str, Any], known: Mapping[str, Any], *, where: str) -> list[str]:
    problems = []
    for key, value in found.items():
        place = f"{where}.{key}" if where else key
        kinds = known.get(key)
        if kinds is None:
            problems.append(f"{place}: unknown key")
            continue
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not fits:
            names = " or ".join(kind.__name__ for kind in kinds)
            problems.append(f"{place}: expected {names}")
    return problems
