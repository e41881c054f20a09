"""The verb `saccade merge`: a run's selector, an adapter and the base as one folder.

Words flow in; a folder that needs neither the run nor PEFT flows out, with how closely it was
checked. Loads neither torch nor PEFT before it is called. Left out: the merge itself
(`models/relevance/merge.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson, Compared, Overrides, Run, Tolerance
from saccade.config.errors import InputError

if TYPE_CHECKING:
    from saccade.training.rundir import RunDir


def merge(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to make.")],
    overrides: Overrides = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="A PEFT adapter that was trained on this run's model."),
    ] = None,
    limit: Compared = 8,
    tolerance: Tolerance = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's selector and its base, adapter merged in, as one folder that stands alone.

    The folder is loaded anew and compared with the run on held-out samples; if a logit drifts,
    nothing is written. Examples:

    - `saccade merge relevance exported`
    - `saccade merge relevance exported --adapter lora-out/checkpoint-500 --limit 32`
    """
    from saccade.cli_inputs import export_dotenv, open_run

    export_dotenv()
    result = _merge_run(
        open_run(run, overrides or []), folder, adapter=adapter, limit=limit, tolerance=tolerance
    )
    out.write_json(result) if as_json else out.metrics_table(result)


def _merge_run(
    run: RunDir, folder: Path, *, adapter: Path | None, limit: int, tolerance: float | None
) -> dict[str, Any]:
    from saccade.data.sources import open_source
    from saccade.evaluation.load import PLAIN_RECIPES, load_run, read_samples, select_indices
    from saccade.models.relevance.merge import attach_adapter, write_merged

    config = run.config()
    if config.recipe in PLAIN_RECIPES:
        raise InputError(
            f"{run.path}: recipe {config.recipe} leaves its model in one piece, nothing is to merge"
            f"\n  fix: use {run.path / 'model'} (`saccade deploy` makes a page of it)"
        )
    loaded = load_run(run)
    attached = None if adapter is None else attach_adapter(loaded.model, adapter)
    source = open_source(config.data.eval)
    samples, _ = read_samples(
        source,
        select_indices(source, limit=limit),
        skip_broken=config.data.on_error == "skip",
    )
    with out.progress_bar() as progress:
        parity = write_merged(
            loaded.model,
            folder,
            samples=samples,
            renderer=loaded.renderer,
            adapter=attached,
            tolerance=tolerance,
            max_new_tokens=config.eval.max_new_tokens,
            progress=progress,
        )
    return {"folder": str(folder), **vars(parity)}
