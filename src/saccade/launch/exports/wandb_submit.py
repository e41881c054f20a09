"""Submit a training with `saccade launch`: the job that a W&B Launch queue runs.

This file is copied beside the queue and stands alone. Words on the command line and the run
configuration that W&B Launch puts into WANDB_CONFIG flow in; one detached `saccade launch` flows
out, recorded in the W&B run that Launch waits for. Submitting is all that happens here: `saccade
watch` follows the job, and the training has a W&B run of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

KEPT = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_DIR")
"""Variables of W&B that `saccade launch` may see; the others name the submitting run."""


def overrides(env: Mapping[str, str]) -> list[str]:
    """Read what was overridden in Launch, as `dotted.key=value` words."""
    text = env.get("WANDB_CONFIG", "")
    step = 0
    while not env.get("WANDB_CONFIG") and f"WANDB_CONFIG_{step}" in env:
        text += env[f"WANDB_CONFIG_{step}"]
        step += 1
    return [f"{key}={_word(value)}" for key, value in _flat(json.loads(text or "{}")).items()]


def command(words: list[str], env: Mapping[str, str]) -> list[str]:
    """Write the call of saccade; an item that Launch queues again stays one launch."""
    run_id = env.get("WANDB_RUN_ID", "")
    token = ["--token", f"wandb-{run_id}"] if re.fullmatch(r"[a-z0-9-]{1,34}", run_id) else []
    return ["saccade", "launch", *words, *overrides(env), *token, "--detach", "--yes", "--json"]


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """Drop what names the submitting run: the training must not take over its id."""
    return {
        name: value for name, value in env.items() if name in KEPT or not name.startswith("WANDB_")
    }


def main(words: list[str]) -> int:
    """Submit, record it, and return the exit code of `saccade launch`."""
    call = command(words, os.environ)
    done = subprocess.run(
        call, env=clean(os.environ), stdout=subprocess.PIPE, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    _record(call, done.stdout, code=done.returncode)
    return done.returncode


def _record(call: list[str], text: str, *, code: int) -> None:
    """Note it in the W&B run; without one, Launch calls a submission that worked a failure.

    Whatever goes wrong here, the job is submitted: the exit code says so, else it would be
    submitted again.
    """
    try:
        import wandb

        if os.environ.get("WANDB_MODE") == "offline":  # there is no job to name as an input
            os.environ.pop("WANDB_ARTIFACTS", None)
        run = wandb.init(job_type="saccade-submit", config={"command": call}, resume="allow")
        run.summary.update({"exit_code": code, **_result(text)})
        run.finish(exit_code=code)
    except Exception as error:
        sys.stderr.write(f"submitted, but not noted in W&B: {error}\n")


def _result(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {"launch": found} if isinstance(found, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
