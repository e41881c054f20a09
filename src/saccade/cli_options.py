"""Arguments and options that several verbs share: the same words mean the same everywhere.

Nothing flows through here; the verbs' signatures use these types. What a single verb understands
stands beside that verb.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE KEY=VALUE",
        help="Recipe (`relevance`, `tiny-base`, `smoke/...`) or a .yaml of yours; then overrides.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides for this call.", show_default=False),
]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Run directory, or a run's name under `run.root`.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Your YAML, on top of the recipe.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use about this many samples.")]
Compared = Annotated[
    int, typer.Option("--limit", min=1, help="Held-out samples to compare answers on.")
]
Tolerance = Annotated[
    float | None,
    typer.Option("--tolerance", min=0.0, help="Largest logit difference; default: by precision."),
]
