"""A stage as a job on a launch target: `saccade launch` does it, this waits for it.

The stage's context flows in, its inputs go along with the job; the run directory, brought into the
stage's folder by the launch, flows out. Everything about machines, prices and supervision is the
launch's; the token makes the same stage the same job, so calling again continues it and never
starts a second one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from saccade.config.errors import Preempted, of_exit_code
from saccade.config.keys import nearest
from saccade.config.resolve import to_yaml
from saccade.config.schema import LaunchConfig
from saccade.pipeline.programs import SACCADE
from saccade.pipeline.stages import StageContext, StageFailed, StageResult, run_command
from saccade.training.rundir import RunDir, write_atomically

TARGETS: tuple[str, ...] = get_args(LaunchConfig.model_fields["target"].annotation)
OWN_STORES = "hf-jobs"
"""The target whose runs stay in stores that only its own tool reads."""
TOKEN_LENGTH = 40
"""Longest token of a launch."""
TOKEN_DIGITS = 8


def target_fault(name: str) -> str | None:
    """Why no stage and no trial can run there, known before anything runs; None where one can."""
    if name not in TARGETS:
        near = nearest(name, TARGETS)
        return f"unknown target; {f'did you mean {near}?' if near else f'there is {_listed()}'}"
    if name == OWN_STORES:
        return (
            "its runs stay in buckets of Hugging Face, from where they cannot be brought here"
            f"\n  fix: another target ({_listed()}), or `saccade launch` by hand"
        )
    return None


def _listed() -> str:
    return ", ".join(one for one in TARGETS if one != OWN_STORES)


def run_on_target(context: StageContext) -> StageResult:
    """Launch the stage's run, wait for its end, and read its metrics."""
    assert context.resolved is not None
    run, name = RunDir.of(context.resolved.config), context.stage.name
    config = context.folder / "launch.yaml"
    write_atomically(config, to_yaml(context.resolved.config))
    words = launch_words(
        config, target=str(context.stage.target.value), token=run.path.name, to=run.path,
        inputs=_named(context),
    )  # fmt: skip
    # the file is complete: neither .training nor the environment may change what the stage says
    env = dict(context.env) | {"SACCADE_CONFIG": str(config)}
    code = run_command(words, context=replace(context, env=env))
    done = run.done()
    if code == 0 and done is not None:
        return StageResult(done["metrics"], {"model": run.path / "model", "run": run.path})
    if code == Preempted.exit_code or context.stop:
        raise Preempted(f"{name}: stopped watching; the same command goes on with the job")
    error = of_exit_code(code) or StageFailed
    raise error(
        f"{context.stage.target.where}: {name}: `saccade launch` ended with {code}"
        f"{'' if code else ', but the run is not finished'}; its messages stand above"
    )


def _named(context: StageContext) -> list[Path]:
    """The inputs that the stage's settings read; one that only orders the stages stays here."""
    assert context.resolved is not None
    texts = [str(value) for value in context.resolved.values().values()]
    return [path for path in context.inputs.values() if any(str(path) in text for text in texts)]


def launch_words(
    config: Path, *, target: str, token: str, to: Path, inputs: Sequence[Path] = ()
) -> list[str]:
    """`saccade launch` for a file, with its run brought into the folder `to`."""
    words = [*SACCADE, "launch", "--config", str(config)]
    words += [word for path in inputs for word in ("--input", str(path))]
    return [*words, "--target", target, "--token", as_token(token), "--to", str(to), "--yes"]


def as_token(name: str) -> str:
    """A name as a launch's token: itself where it may be one, else its beginning and a hash."""
    plain = re.sub(r"[^a-z0-9-]", "-", name.lower())
    if plain == name and len(name) <= TOKEN_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:TOKEN_DIGITS]
    return f"{plain[: TOKEN_LENGTH - TOKEN_DIGITS - 1]}-{digest}"
