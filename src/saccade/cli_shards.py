"""The verb `saccade data build shards`: pictures of samples, encoded once and kept.

What was typed flows in; the work is done in `pipeline/shards.py`. A summary or JSON goes to stdout,
the disk estimate, progress and throughput to stderr. Left out: reading shards (what trains does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade import cli_output as out

if TYPE_CHECKING:
    from saccade.config.resolve import Resolved

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE KEY=VALUE",
        help="Recipe to train on the shards while they are built (none: only build); overrides.",
        show_default=False,
    ),
]
Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="Start over; encoded pictures stay in the cache.")
]
Repair = Annotated[
    bool, typer.Option("--repair", help="Build damaged shards again, and no others.")
]
DatasetOnly = Annotated[
    bool, typer.Option("--dataset-only", help="Build and train nothing, even with a recipe.")
]
NoIncremental = Annotated[
    bool, typer.Option("--no-incremental", help="Train only when the last shard is there.")
]
Estimate = Annotated[bool, typer.Option("--estimate", help="Only tell how much disk it takes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]


def register(build_app: typer.Typer) -> None:
    """Give `saccade data build` its verb."""
    build_app.command("shards")(shards)


def shards(
    words: Words = None,
    rebuild: Rebuild = False,
    repair: Repair = False,
    dataset_only: DatasetOnly = False,
    no_incremental: NoIncremental = False,
    estimate: Estimate = False,
    as_json: AsJson = False,
) -> None:
    """Draw samples as pictures, encode them with a frozen vision tower, keep capsules and targets.

    The same command continues a build that was stopped or killed. With a recipe, training starts
    when the first shard is complete and follows the builder. Examples:

    - `saccade data build shards`
    - `saccade data build shards shards.sources=[{type: stories, path: tales.txt}] --estimate`
    - `saccade data build shards shards.path=data/shards model.name=Qwen/Qwen3-VL-2B-Instruct`
    - `saccade data build shards --repair`
    """
    from saccade.cli_inputs import export_dotenv, resolve_words, split_words

    recipe, _ = split_words(words)
    resolved = resolve_words(words)
    export_dotenv()
    if estimate:
        _show_estimate(resolved, as_json=as_json)
        return
    if recipe is None or dataset_only:
        result = _build(resolved, rebuild=rebuild, repair=repair)
    else:
        result = _build_and_train(
            resolved, incremental=not no_incremental, rebuild=rebuild, repair=repair
        )
    out.write_json(result) if as_json else out.metrics_table(result)


def _show_estimate(resolved: Resolved, *, as_json: bool) -> None:
    from saccade.pipeline.shards import open_builder

    found = open_builder(resolved.config).estimate()
    out.write_json(found.to_json()) if as_json else out.metrics_table(found.to_json())


def _build(resolved: Resolved, **how: Any) -> dict[str, Any]:
    from saccade.pipeline.shards import build_shards

    with out.progress_bar() as progress:
        summary = build_shards(
            resolved.config, progress=progress, tell=lambda found: out.show_note(str(found)), **how
        )
    return {"shards": str(resolved.config.shards.path), **summary.to_json()}


def _build_and_train(resolved: Resolved, **how: Any) -> dict[str, Any]:
    from saccade.pipeline.shards import build_beside, refuse_other_data
    from saccade.training.run import train

    refuse_other_data(resolved.config)

    def work() -> dict[str, Any]:
        return train(resolved, console=out.stderr())

    with out.progress_bar() as progress:
        return build_beside(resolved, train=work, progress=progress, **how)
