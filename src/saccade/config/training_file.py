"""Flat names: the `.training` file and `SACCADE_*` environment variables.

One table maps the flat names people know from training scripts (`LEARNING_RATE`) to dotted keys
(`training.learning_rate`). A `.training` file in the working folder holds `NAME=value` lines by
python-dotenv's rules (quotes, comments, `export`), without shell evaluation; the environment uses
the same names behind `SACCADE_`. Values flow out as a `Layer`; secrets never stand here (see
`secrets.py`). An empty value (`WANDB_ENTITY=`) counts as not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.config.keys import find_key, nearest
from saccade.config.layers import Layer, Problem, read_text

if TYPE_CHECKING:
    from dotenv.parser import Original

FLAT_NAMES: dict[str, str] = {
    "RUN_NAME": "run.name",
    "OUTPUT_DIR": "run.root",
    "SEED": "run.seed",
    "BASE_MODEL": "model.name",
    "MODEL_REVISION": "model.revision",
    "DEVICE": "model.device",
    "DTYPE": "model.dtype",
    "ATTENTION": "model.attention",
    "MIN_PIXELS": "model.min_pixels",
    "MAX_PIXELS": "model.max_pixels",
    "NUM_VISUAL_TOKENS": "selector.keep",
    "MIN_VISUAL_TOKENS": "selector.min_tokens",
    "MAX_VISUAL_TOKENS": "selector.max_tokens",
    "SELECTOR_WIDTH": "selector.width",
    "DISTILL_WEIGHT": "selector.distill_weight",
    "DISTILL_STEPS": "selector.distill_steps",
    "MAX_STEPS": "training.steps",
    "BATCH_SIZE": "training.batch_size",
    "GRADIENT_ACCUMULATION_STEPS": "training.accumulation",
    "LEARNING_RATE": "training.learning_rate",
    "LR_SCHEDULER_TYPE": "training.schedule",
    "WEIGHT_DECAY": "training.weight_decay",
    "ADAM_BETA2": "training.beta2",
    "WARMUP_RATIO": "training.warmup_ratio",
    "MAX_GRAD_NORM": "training.max_grad_norm",
    "PRECISION": "training.precision",
    "SAVE_STEPS": "training.save_every",
    "SAVE_TOTAL_LIMIT": "training.keep_checkpoints",
    "EVAL_STEPS": "training.eval_every",
    "LOGGING_STEPS": "training.log_every",
    "NUM_WORKERS": "training.workers",
    "NUM_THREADS": "training.threads",
    "EVAL_SAMPLES": "eval.samples",
    "EVAL_BATCH_SIZE": "eval.batch_size",
    "MAX_NEW_TOKENS": "eval.max_new_tokens",
    "WANDB_MODE": "tracking.wandb",
    "WANDB_PROJECT": "tracking.project",
    "WANDB_ENTITY": "tracking.entity",
    "LAUNCH_TARGET": "launch.target",
    "GCP_PROJECT": "launch.project",
    "WANDB_QUEUE": "launch.queue",
    "MACHINE_TYPE": "launch.machine",
    "REPLICA_COUNT": "launch.replicas",
    "STRATEGY": "launch.strategy",
    "REGIONS": "launch.regions",
    "MAX_ATTEMPTS": "launch.max_attempts",
    "WAIT_MINUTES": "launch.wait_minutes",
    "BUDGET_USD": "launch.budget",
    "EXPECTED_HOURS": "launch.hours",
    "TIMEOUT_HOURS": "launch.timeout_hours",
    "DISK_GB": "launch.disk_gb",
    "IMAGE_URI": "launch.image",
}
"""Flat name -> dotted key; the only place where flat names are defined."""

ENVIRONMENT_PREFIX = "SACCADE_"

OTHER_VARIABLES: dict[str, str] = {
    "SACCADE_LOG_LEVEL": "Verbosity of log lines on stderr: debug, info, warning (default), error.",
    "SACCADE_FAKE_CLOUD": "Address of a fake cloud (`saccade cloud fake`) to use instead.",
    "SACCADE_FAKE_STATE": "Folder of the fake cloud's state; default below ~/.cache/saccade.",
    "SACCADE_HOME": "Folder of saccade's own files; default ~/.config/saccade.",
    "SACCADE_BUCKET": "Storage bucket of runs and code; default PROJECT-saccade-REGION.",
    "SACCADE_IMPERSONATE": "Service account to act as in Google Cloud, by its e-mail address.",
    "SACCADE_RUN": "Set inside a launched job: the run's name.",
    "SACCADE_STORE": "Set inside a launched job: root of the store for checkpoints and results.",
    "SACCADE_CODE": "Set inside a launched job: the code archive; empty = the image has the code.",
    "SACCADE_CONFIG": "Set inside a launched job: the resolved configuration file.",
    "SACCADE_INPUTS": "Set inside a launched job: hashes of the inputs it brings from the store.",
    "SACCADE_ATTEMPT": "Set inside a launched job: which attempt of the launch it is.",
    "SACCADE_SECRETS": "Set inside a launched job: names in Secret Manager, never values.",
    "SACCADE_GPUS": "Set inside a launched job: GPUs that must be there; 0 = none.",
}
"""Variables with the prefix that are not configuration values."""


def read_training_file(path: Path) -> Layer:
    """Read `.training`; a missing file is an error, so callers pass only files that exist."""
    from dotenv.parser import parse_stream

    layer = Layer()
    try:
        stream = path.open(encoding="utf-8")
    except OSError as error:
        layer.problems.append(Problem(where=str(path), message=f"cannot be read: {error.strerror}"))
        return layer
    with stream:
        bindings = list(parse_stream(stream))
    seen: dict[str, int] = {}
    for binding in bindings:
        line = line_of(binding.original)
        where = f"{path}:{line}"
        name, value = binding.key, binding.value
        if binding.error or (name is not None and value is None):
            text = binding.original.string.strip()
            layer.problems.append(Problem(where=where, message=f"`{text}` is not NAME=value"))
        elif name is not None and value is not None:
            if name in seen:
                message = f"{name} is given twice (first in line {seen[name]})"
                layer.problems.append(Problem(where=where, message=message))
            seen[name] = line
            _put(layer, name, value, where=where, label=name)
    return layer


def line_of(original: Original) -> int:
    """Return the line a binding's name stands on; its text may begin with blank lines."""
    skipped = len(original.string) - len(original.string.lstrip())
    return original.line + original.string[:skipped].count("\n")


def read_environment(env: Mapping[str, str]) -> Layer:
    """Read `SACCADE_<FLAT NAME>` variables; other variables are not looked at."""
    layer = Layer()
    for variable, value in sorted(env.items()):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in OTHER_VARIABLES:
            name = variable.removeprefix(ENVIRONMENT_PREFIX)
            where = f"environment {variable}"
            _put(layer, name, value, where=where, label="", prefix=ENVIRONMENT_PREFIX)
    return layer


def _put(layer: Layer, name: str, value: str, *, where: str, label: str, prefix: str = "") -> None:
    dotted = FLAT_NAMES.get(name)
    if dotted is None:
        layer.problems.append(
            Problem(where=where, key=label, message=_unknown(name, prefix=prefix), value=value)
        )
        return
    if value == "":
        return
    key = find_key(dotted)
    assert key is not None, f"FLAT_NAMES points {name} at {dotted}, which does not exist"
    layer.put(dotted, read_text(value, key.annotation), where=where, label=label)


def _unknown(name: str, *, prefix: str) -> str:
    others = [other.removeprefix(ENVIRONMENT_PREFIX) for other in OTHER_VARIABLES]
    candidates = [*FLAT_NAMES, *(others if prefix else [])]
    near = nearest(name, candidates) or _flat_of_leaf(name)
    hint = f"did you mean {prefix}{near}?" if near else "see docs/reference/training-file.md"
    return f"unknown name; {hint}"


def _flat_of_leaf(name: str) -> str | None:
    """Find the flat name of a dotted key's last part, so `ACCUMULATION` finds its long name."""
    for flat, dotted in FLAT_NAMES.items():
        if dotted.rpartition(".")[2].upper() == name.upper():
            return flat
    return None
