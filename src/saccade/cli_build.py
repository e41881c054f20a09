"""The group `saccade data build` and its verb `grounding`: screenshots and targets, ready to learn.

What was typed flows in; the work is done in `data/screens/prepare.py`. A summary or JSON goes to
stdout, progress and rows that were left out to stderr. Left out: the other verb of the group
(`cli_shards.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson, ConfigFile
from saccade.config.errors import InputError

RECIPE = "grounding"
SHOWN_BROKEN = 20
"""Rows left out that are named; the others are counted."""

INWARD = ("plan", "picture_files")
"""What the manifest keeps for the next build."""

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE KEY=VALUE",
        help="Recipe whose data.train is built (default: grounding); then overrides.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Most = Annotated[int, typer.Option("--max-samples", min=1, help="Rows of all splits together.")]
Folders = Annotated[
    list[Path] | None,
    typer.Option("--from", help="Also rows of this ScreenSpot-like folder; may be repeated."),
]
Boxes = Annotated[
    Literal["auto", "xywh", "xyxy"],
    typer.Option("--boxes", help="With --from: what the folders' boxes mean; auto = by layout."),
]
SharesText = Annotated[
    str, typer.Option("--shares", help="Parts of the screenshots: train/validation/test.")
]
Benchmark = Annotated[
    bool, typer.Option("--allow-benchmark", help="Take a public benchmark's test rows, too.")
]


def register(data_app: typer.Typer) -> typer.Typer:
    """Give `saccade data` its group `build` with the verb `grounding`; returns the group."""
    app = typer.Typer(no_args_is_help=True, help="Make data sets that are read again and again.")

    @app.callback()
    def _group() -> None:
        """Make data sets that are read again and again."""

    app.command("grounding")(grounding)
    data_app.add_typer(app, name="build")
    return app


def grounding(
    words: Words = None,
    config: ConfigFile = None,
    output: Out = Path("grounding-data"),
    max_samples: Most = 1200,
    folders: Folders = None,
    boxes: Boxes = "auto",
    shares: SharesText = "75/5/20",
    allow_benchmark: Benchmark = False,
    as_json: AsJson = False,
) -> None:
    """Write train, validation and test rows of screenshots with one target each.

    Pages are generated, folders come on top. The same screenshot never is in two splits. A second
    run with the same input changes nothing. Examples:

    - `saccade data build grounding --max-samples 1200`
    - `saccade data build grounding --from data/adminlte --from data/miniwob --out screens`
    - `saccade data build grounding data.train.type=screenspot data.train.path=data/adminlte`
    - `saccade data build grounding data.train.renderer=drawn model.max_pixels=65536`
    - `saccade train grounding data.train.type=grounding data.train.path=grounding-data`
    """
    from saccade.cli_inputs import pixel_rules, resolve_words, split_words
    from saccade.config.screens import ScreenSpotSource
    from saccade.data.screens.prepare import FirstLook, Wanted, build_grounding
    from saccade.data.screens.splits import Shares

    if boxes != "auto" and not folders:
        raise InputError(
            "--boxes belongs to --from\n  fix: leave it out, or set data.train.boxes instead"
        )
    recipe, overrides = split_words(words)
    named = [recipe or RECIPE] if config is None else [recipe] if recipe else []
    resolved = resolve_words([*named, *overrides], file=config).config
    rules = pixel_rules(resolved.model)
    wanted = Wanted(
        look=FirstLook(**vars(rules)),
        max_samples=max_samples,
        shares=Shares.read(shares),
        allow_benchmark=allow_benchmark,
        skip_broken=resolved.data.on_error == "skip",
    )
    sources = [
        resolved.data.train,
        *(ScreenSpotSource(type="screenspot", path=path, boxes=boxes) for path in folders or []),
    ]
    with out.progress_bar() as progress:
        result = build_grounding(sources, out=output, wanted=wanted, progress=progress)
    _show(result, output=output, as_json=as_json)


def _show(result: dict[str, Any], *, output: Path, as_json: bool) -> None:
    for line in result["broken"][:SHOWN_BROKEN]:
        out.show_note(f"left out: {line}")
    if len(result["broken"]) > SHOWN_BROKEN:
        out.show_note(f"left out: {len(result['broken']) - SHOWN_BROKEN} more")
    if not result["built"]:
        out.show_note(f"{output}: built before from the same input; nothing changed")
    summary = {
        "folder": str(output),
        **{name: one for name, one in result.items() if name not in INWARD},
    }
    if as_json:
        out.write_json(summary)
        return
    columns = ["split", "rows", "screenshots", "random click %"]
    rows = [
        [split, count, result["screenshots"][split], 100 * result["random_click"][split]]
        for split, count in result["rows"].items()
    ]
    out.table(columns, rows, right=[1, 2, 3])
    names = ", ".join(result["benchmarks"])
    if names:
        out.show_note(f"holds test rows of {names}: no score on it means anything any more")
    if result["left_out"]:
        out.show_note(f"{result['left_out']} broken rows are left out")
    if result["built"]:
        out.show_note(f"written: {output}")
