"""A W&B Launch queue whose jobs call `saccade launch`, and the stock Vertex queue for comparison.

A resolved configuration flows in, the texts of a folder of files flow out: queue, agent
configuration, the submitting job, and the commands that set them up. Launch's own Vertex runner is
not used, because it drops the scheduling strategy and loses sight of its jobs; what stock Launch
cannot do stands in `LIMITS`, in every file and on the screen. Left out: talking to W&B.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saccade.config.errors import InputError
from saccade.launch.machines import machine

RESOURCE = "local-process"
"""The agent runs the submitting command itself, with its own credentials."""
STOCK_RESOURCE = "gcp-vertex"
JOB = "saccade-submit"

LIMITS: Mapping[str, tuple[str, ...]] = {
    RESOURCE: (
        "The agent puts WANDB_API_KEY in clear text on the command line of the submitting process:"
        " every user of the agent's machine can read it. Run the agent on a machine of your own.",
        "Launch sees the submission only. States, cost and recovery: saccade jobs, saccade watch.",
        "The agent must run where saccade is installed and logged in to Google Cloud.",
    ),
    STOCK_RESOURCE: (
        "No spot and no flex-start: the Vertex runner drops the scheduling strategy, so every job"
        " runs, and is billed, on demand.",
        "No status on Python >= 3.11: the runner never sees a job end, its slot (max_jobs) is"
        " taken for good, and failures show no log.",
        "WANDB_API_KEY stands in clear text in the job: whoever can read the job reads the key.",
        "No resubmission after a preemption, no region failover, no budget.",
    ),
}
"""What stock W&B Launch cannot do (wandb 0.31), by kind of queue."""


@dataclass(frozen=True)
class Vertex:
    """What the stock Vertex queue needs of Google Cloud."""

    machine: str
    replicas: int
    region: str
    bucket: str
    service_account: str
    timeout_s: int
    disk_gb: int


def render(
    *,
    queue: str,
    entity: str | None,
    project: str,
    words: Sequence[str],
    max_jobs: int = 4,
    vertex: Vertex | None = None,
) -> dict[str, str]:
    """Write all files of the export: name -> text. `words` are the example job's."""
    if not 0 < len(queue) < 64:
        raise InputError(f"launch.queue = {queue}: 1 to 63 characters")
    who = entity or "YOUR-ENTITY"
    example = {"overrides": {"args": list(words), "run_config": {}}}
    files = {
        "queue.yaml": _head(RESOURCE, "Queue: type local-process; it has no settings.")
        + yaml.safe_dump(queue_config()),
        "launch-config.yaml": _head(RESOURCE, "Agent: ~/.config/wandb/launch-config.yaml")
        + yaml.safe_dump(agent_config(queue=queue, entity=entity, max_jobs=max_jobs)),
        "job/submit.py": Path(__file__).with_name("wandb_submit.py").read_text(encoding="utf-8"),
        "job/requirements.txt": "wandb\n",
        "example.json": json.dumps(example, indent=2) + "\n",
        "create_queue.py": _create_script(queue, entity=entity, resource=RESOURCE),
        "README.md": _readme(queue, who=who, project=project, stock=vertex is not None),
    }
    if vertex is not None:
        stock = yaml.safe_dump(stock_vertex_config(vertex), sort_keys=False)
        head = "Queue of stock W&B Launch: type gcp-vertex. For comparison; rather use queue.yaml."
        files["stock-vertex-queue.yaml"] = _head(STOCK_RESOURCE, head) + stock
        agent = agent_config(queue=f"{queue}-vertex", entity=entity, max_jobs=max_jobs)
        agent["environment"] = {"type": "gcp", "region": vertex.region}
        files["stock-vertex-launch-config.yaml"] = _head(
            STOCK_RESOURCE, "Agent of the stock Vertex queue."
        ) + yaml.safe_dump(agent)
    return files


def queue_config() -> dict[str, Any]:
    """Return the settings of our queue; a local-process queue has none."""
    return {}


def agent_config(*, queue: str, entity: str | None, max_jobs: int = 4) -> dict[str, Any]:
    """Return the agent's configuration; the agent refuses unknown keys."""
    return {
        "entity": entity,
        "queues": [queue],
        "max_jobs": max_jobs,
        # nobody in the queue may put another program in place of the submission
        "secure_mode": True,
        "builder": {"type": "noop"},
    }


def stock_vertex_config(vertex: Vertex) -> dict[str, Any]:
    """Return a gcp-vertex queue in exactly the form that Launch's runner reads.

    Strategy, longest wait and retries are missing because the runner drops them.
    """
    kind = machine(vertex.machine)
    spec: dict[str, Any] = {"machine_type": kind.machine_type}
    if kind.accelerator_type is not None:
        spec |= {"accelerator_type": kind.accelerator_type, "accelerator_count": kind.gpus}
    pools = []
    for replicas in (1, vertex.replicas - 1):
        if replicas > 0:
            pools.append(
                {
                    "machine_spec": dict(spec),
                    "replica_count": replicas,
                    "disk_spec": {
                        "boot_disk_type": "pd-ssd", "boot_disk_size_gb": vertex.disk_gb,
                    },
                    "container_spec": {"image_uri": "${image_uri}"},
                }
            )  # fmt: skip
    return {
        "spec": {
            "worker_pool_specs": pools,
            "staging_bucket": f"gs://{vertex.bucket}",
            "base_output_dir": f"gs://{vertex.bucket}/runs",
            "labels": {"app": "saccade"},
        },
        "run": {
            "timeout": vertex.timeout_s,  # whole seconds; text raises in the SDK
            "service_account": vertex.service_account,
            "restart_job_on_worker_restart": vertex.replicas > 1,
        },
    }


def _head(resource: str, title: str) -> str:
    lines = [title, "What stock W&B Launch cannot do here:", *_bullets(resource)]
    return "".join(f"# {line}\n" for line in lines)


def _bullets(resource: str) -> list[str]:
    import textwrap

    return [
        line
        for limit in LIMITS[resource]
        for line in textwrap.wrap(limit, 94, initial_indent="- ", subsequent_indent="  ")
    ]


def _create_script(queue: str, *, entity: str | None, resource: str) -> str:
    return f'''"""Create the queue {queue!r}; run it once. W&B has no command for it."""

from pathlib import Path

import wandb
import yaml

config = yaml.safe_load(Path(__file__).with_name("queue.yaml").read_text())
wandb.Api().create_run_queue(
    name={queue!r}, type={resource!r}, entity={entity!r}, config=config
)
'''


def _readme(queue: str, *, who: str, project: str, stock: bool) -> str:
    limits = "\n".join(_bullets(RESOURCE))
    more = ""
    if stock:
        more = (
            "\n## The stock Vertex queue\n\n`stock-vertex-queue.yaml` is what Launch's own runner "
            "for Vertex AI reads. It is here for\ncomparison:\n\n"
            + "\n".join(_bullets(STOCK_RESOURCE))
            + "\n"
        )
    return f"""# W&B Launch queue `{queue}`

Jobs of this queue call `saccade launch --detach`, so spot machines, recovery, budget and states
are saccade's.

```
python create_queue.py
wandb job create --project {project} --entity {who} --name {JOB} \\
    --entry-point "python submit.py" code job
wandb launch-agent --queue {queue} --config launch-config.yaml
wandb launch --queue {queue} --entity {who} --project {project} \\
    --job {who}/{project}/{JOB}:latest --config example.json
```

`overrides.args` in `example.json` are the words of `saccade launch`; `overrides.run_config` becomes
`key=value` words, so a sweep over a queue works, too.

What stock W&B Launch cannot do here:

{limits}
{more}"""
