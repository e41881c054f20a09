"""A stage as a job on a launch target: `saccade launch` does it, this waits for it.

The stage's context flows in; the run directory, brought back by the launch, flows out. Everything
about machines, prices and supervision is the launch's; the token makes the same stage the same
job, so calling again continues it and never starts a second one.
"""

from __future__ import annotations

import sys

from saccade.config.errors import InputError, OutsideError, Preempted
from saccade.config.resolve import to_yaml
from saccade.pipeline.stages import StageContext, StageFailed, StageResult, run_command
from saccade.training.rundir import RunDir, write_atomically


def run_on_target(context: StageContext) -> StageResult:
    """Launch the stage's run, wait for its end, and read its metrics."""
    assert context.resolved is not None
    run, name = RunDir.of(context.resolved.config), context.stage.name
    config = context.folder / "launch.yaml"
    write_atomically(config, to_yaml(context.resolved.config))
    words = [sys.executable, "-m", "saccade.cli", "launch", "--config", str(config)]
    words += ["--target", str(context.stage.target.value), "--token", run.path.name, "--yes"]
    code = run_command(words, context=context)
    done = run.done()
    if code == 0 and done is not None:
        return StageResult(done["metrics"], {"model": run.path / "model", "run": run.path})
    if code == Preempted.exit_code or context.stop:
        raise Preempted(f"{name}: stopped watching; the same command goes on with the job")
    error = {2: InputError, 3: OutsideError}.get(code, StageFailed)
    raise error(
        f"{context.stage.target.where}: {name}: `saccade launch` ended with {code}"
        f"{'' if code else ', but the run is not finished'}; its messages stand above"
    )
