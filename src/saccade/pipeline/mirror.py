"""An optional copy of every artifact in W&B: `mirror: wandb` in the pipeline file.

A stored version and its files flow in; a `wandb.Artifact` flows out, online with WANDB_API_KEY and
into an offline folder without. It is a copy for people who look there: nothing is ever read back,
and whatever goes wrong in it is a warning, never the stage's failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from saccade.pipeline.artifacts import Version


def mirror_version(
    version: Version, path: Path, *, root: Path, say: Callable[[str], None]
) -> str | None:
    """Log one version as a W&B artifact; returns the folder or address of the W&B run."""
    try:
        import wandb

        run = wandb.init(
            project="saccade-pipelines",
            job_type=str(version.lineage.get("stage", "stage")),
            name=str(version),
            mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
            dir=str(root),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        artifact = wandb.Artifact(
            version.name,
            type="stage-output",
            metadata={"digest": version.digest, "lineage": dict(version.lineage)},
        )
        artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
        run.log_artifact(artifact, aliases=["latest", f"v{version.version}"])
        run.finish()
        return str(run.dir)
    except Exception as error:  # a third party's failure of any kind is not the stage's
        say(f"{version}: not mirrored to W&B: {error.__class__.__name__}: {error}")
        return None
