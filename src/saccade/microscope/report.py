"""The report of a run: one self-contained HTML page that a person can read and send.

In goes a run directory; out comes `report.html`: status, what the comparison shows, plots and
tables, samples answered right and wrong with their maps, curves, what happened during the run,
what all this does not show, and the commands that repeat it. Styles, pictures and figures are
inside the page; it asks for nothing over the network and works without scripts. An unfinished or
unscored run gets a page too, which says what is missing.
"""

from __future__ import annotations

import logging
import random
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

from saccade.config.errors import SaccadeError
from saccade.config.resolve import flatten
from saccade.config.schema import Config, ScenesSource
from saccade.config.screens import ScreensSource
from saccade.data.sources import open_source
from saccade.evaluation.compare import read_comparison
from saccade.evaluation.load import Progress, load_run, no_progress
from saccade.evaluation.records import read_predictions
from saccade.evaluation.run import read_evaluation
from saccade.microscope import grounding_section, sections
from saccade.microscope.cards import SCORE_MEANINGS, cards
from saccade.microscope.explain import Explanation, explain
from saccade.microscope.figures import save_training_figures
from saccade.microscope.grounding_cards import Shown
from saccade.microscope.grounding_learning import learning_section
from saccade.microscope.grounding_section import GroundingPage
from saccade.microscope.markup import facts, section, text
from saccade.training.events import read_events
from saccade.training.rundir import RunDir, write_atomically

log = logging.getLogger(__name__)
SHOWN_EACH = 5
"""Samples shown that were answered right, and as many that were not."""
TINY = 2_000_000
"""Parameters below which a base is called tiny."""
SELECTOR_LIMITS = (
    "Maps show what the selector scored, not why the language model answered; a kept cell "
    "need not have been used.",
    "Dropping tokens after the encoder leaves the vision tower's cost as it is; decoding "
    "speed hardly moves. Milliseconds hold for the machine named below, and for small models "
    "much of them is overhead that operations do not count.",
    "Operations count matrix products only, and causal attention as the full square.",
)


@dataclass(frozen=True)
class ReportData:
    """Everything the page is made of; building it is the only part that reads files."""

    name: str
    path: str
    config: Config
    done: Mapping[str, Any] | None
    provenance: Mapping[str, Any] | None = None
    events: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] | None = None
    comparison: Mapping[str, Any] | None = None
    right: Sequence[Explanation] = field(default_factory=tuple)
    wrong: Sequence[Explanation] = field(default_factory=tuple)
    missing_samples: str = ""
    grounding: GroundingPage | None = None


class Judged(Protocol):
    """An answer as choosing sees it."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def correct(self) -> bool: ...


AnyJudged = TypeVar("AnyJudged", bound=Judged)


def write_report(
    run: RunDir, *, samples_each: int = SHOWN_EACH, progress: Progress = no_progress
) -> Path:
    """Write `report.html` and the training curves under `figures/`; returns the page's path."""
    progress("writing the report", 0, 3)
    data = read_report_data(run, samples_each=samples_each)
    progress("writing the report", 1, 3)
    save_training_figures(data.events, folder=run.figures)
    progress("writing the report", 2, 3)
    write_atomically(run.report_file, page(data))
    progress("writing the report", 3, 3)
    return run.report_file


def read_report_data(run: RunDir, *, samples_each: int) -> ReportData:
    """Collect the run's files and look at the chosen samples with its model."""
    config = run.config()
    if config.recipe == "grounding":
        return _grounding_data(run, config, samples_each=samples_each)
    right, wrong, missing = _look_at_samples(run, config, each=samples_each)
    return ReportData(
        name=run.path.resolve().name,
        path=str(run.path),
        config=config,
        done=run.done(),
        provenance=run.provenance(),
        events=read_events(run.events_file),
        evaluation=None if config.recipe in ("recursion", "thoughts") else read_evaluation(run),
        comparison=read_comparison(run),
        right=right,
        wrong=wrong,
        missing_samples=missing,
    )


def _grounding_data(run: RunDir, config: Config, *, samples_each: int) -> ReportData:
    def pick(shown: Sequence[Shown], correct: bool) -> list[Shown]:
        return choose(shown, correct=correct, count=samples_each, seed=config.run.seed)

    return ReportData(
        name=run.path.resolve().name, path=str(run.path), config=config, done=run.done(),
        provenance=run.provenance(), events=read_events(run.events_file),
        grounding=grounding_section.read_page(run, config, pick=pick),
    )  # fmt: skip


def choose(
    predictions: Sequence[AnyJudged], *, correct: bool, count: int, seed: int
) -> list[AnyJudged]:
    """Samples to show: drawn by seed, kinds in turn, so that nobody picks the pretty ones."""
    pool = sorted((p for p in predictions if p.correct == correct), key=lambda p: p.id)
    random.Random(f"report-{seed}-{correct}").shuffle(pool)
    kinds = sorted({p.kind for p in pool})
    queues = {kind: [p for p in pool if p.kind == kind] for kind in kinds}
    chosen: list[AnyJudged] = []
    while len(chosen) < min(count, len(pool)):
        for kind in kinds:
            if queues[kind] and len(chosen) < count:
                chosen.append(queues[kind].pop(0))
    return chosen


def _look_at_samples(
    run: RunDir, config: Config, *, each: int
) -> tuple[list[Explanation], list[Explanation], str]:
    if config.recipe == "thoughts":
        return [], [], f"Answers are single symbols: saccade eval {run.path}."
    if config.recipe == "recursion":
        return [], [], f"Answers are grids, one per step of thinking: saccade eval {run.path}."
    if not run.predictions_file.is_file():
        return [], [], f"No answers are stored yet: run saccade eval {run.path}."
    predictions = read_predictions(run.predictions_file)
    first = predictions[0]
    seed = config.run.seed
    picked = {
        correct: choose(predictions, correct=correct, count=each, seed=seed)
        for correct in (True, False)
    }
    wanted = {p.id for group in picked.values() for p in group}
    source = open_source(config.data.eval)
    try:
        samples = {s.id: s for s in (source[i] for i in range(len(source))) if s.id in wanted}
        loaded = load_run(run)
        keep = first.keep if first.keep is not None else config.selector.keep
        found = {
            correct: explain(
                loaded, [samples[p.id] for p in group if p.id in samples], arm=first.arm, keep=keep
            )
            for correct, group in picked.items()
        }
    except SaccadeError as error:  # no weights, moved data: the rest of the page is still true
        log.warning("the report shows no samples: %s", error)
        return [], [], f"No samples are shown: {error}"
    return found[True], found[False], ""


def page(data: ReportData) -> str:
    """The whole page as HTML; a pure function of its data."""
    right, right_rules = cards(data.right, prefix="r") if data.right else ("", "")
    wrong, wrong_rules = cards(data.wrong, prefix="w") if data.wrong else ("", "")
    rules = right_rules + wrong_rules
    if data.grounding is not None:
        found, rules = grounding_section.sections_of(
            data.grounding, run=data.path, seed=data.config.run.seed
        )
        found.append(learning_section(data.events))
    else:
        found = [
            sections.comparison_section(data.comparison, run=data.path),
            _samples_section(data, right, wrong),
            sections.evaluation_section(data.evaluation, run=data.path),
        ]
    parts = [
        *found,
        sections.training_section(data.events),
        sections.timeline_section(data.events),
        _limits_section(data),
        sections.provenance_section(
            flatten(data.config.model_dump(mode="json")), data.provenance, commands=commands(data)
        ),
    ]
    style = _asset("report.css") + rules
    title = f"saccade: {data.name}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body>"
        f"{_header(data)}{_navigation(parts)}<main>{''.join(parts)}</main>"
        f"<footer>Written by saccade from the files in <code>{text(data.path)}</code>.</footer>"
        f"<script>{_asset('report.js')}</script></body></html>\n"
    )


def commands(data: ReportData) -> list[str]:
    """The commands that made this run, from its provenance where it is known."""
    argv = list((data.provenance or {}).get("argv") or [])
    train = ["saccade", "train", data.config.recipe]
    if "train" in argv:
        train = ["saccade", *argv[argv.index("train") :]]
    run = shlex.quote(data.path)
    return [shlex.join(train), *(f"saccade {verb} {run}" for verb in ("eval", "compare", "report"))]


def _asset(name: str) -> str:
    return (resources.files("saccade.microscope") / name).read_text("utf-8")


def _header(data: ReportData) -> str:
    if data.done is not None:
        pill = '<span class="pill done">DONE</span>'
        state = f"reached its target of {data.done['target_step']} steps"
    else:
        steps = [e["step"] for e in data.events if e["type"] == "step"]
        at = f"last logged step {max(steps)}" if steps else "no step logged"
        pill = '<span class="pill unfinished">UNFINISHED</span>'
        state = f"{at} of {data.config.training.steps}; the same train command continues it"
    config = data.config
    highlights = [("recipe", config.recipe), ("base model", config.model.name)]
    if config.recipe == "relevance":
        highlights.append(("selector", _selector_text(data)))
    highlights += [
        ("training", _training_text(config)),
        ("data", f"{_source_text(config.data.train)}; held out: {_source_text(config.data.eval)}"),
    ]  # fmt: skip
    return (
        f'<header class="top"><div><div class="heading"><h1>{text(data.name)}</h1>{pill}</div>'
        f'<p class="muted">{text(state)}</p>{_tiles(data)}'
        f"{facts(highlights)}</div></header>"
    )


def _tiles(data: ReportData) -> str:
    if data.grounding is not None:
        return grounding_section.tiles(data.grounding)
    return sections.tiles(data.evaluation, data.comparison)


def _training_text(config: Config) -> str:
    batch = config.training.batch_size * config.training.accumulation
    return f"{config.training.steps} steps of {batch} questions, seed {config.run.seed}"


def _selector_text(data: ReportData) -> str:
    config = data.config.selector
    plan = next((e for e in data.events if e["type"] == "plan"), None)
    size = f", {plan['trainable_parameters']:,} trained parameters" if plan else ""
    return f"{', '.join(config.scores)}; trained for budgets {config.keep_curriculum}{size}"


def _source_text(source: Any) -> str:
    if isinstance(source, ScenesSource):
        return f"{source.scenes:,} generated scenes ({source.split})"
    if isinstance(source, ScreensSource):
        return f"{source.screens:,} generated screens ({source.split})"
    return f"{source.type} {getattr(source, 'path', None) or getattr(source, 'name', '')}"


def _navigation(parts: Sequence[str]) -> str:
    names = {
        "comparison": "Comparison", "selectors": "Selectors", "samples": "Samples",
        "accuracy": "Accuracy",
        "screens": "Other screens", "learning": "Learning", "training": "Training",
        "timeline": "What happened", "limits": "Limits",
        "provenance": "Reproduce",
    }  # fmt: skip
    links = "".join(
        f'<a href="#{key}">{name}</a>'
        for key, name in names.items()
        if any(part.startswith(f'<section id="{key}"') for part in parts)
    )
    return f'<nav aria-label="Sections"><div>{links}</div></nav>'


def _samples_section(data: ReportData, right: str, wrong: str) -> str:
    if not (right or wrong):
        note = data.missing_samples or "No samples to show."
        return section("samples", title="Samples", body=f"<p>{text(note)}</p>")
    mapped = any(view.maps for one in [*data.right, *data.wrong] for view in one.views)
    body = (
        f'<p class="muted">Drawn by seed {data.config.run.seed} from the scored questions, kinds '
        "in turn; nobody picked them.</p>"
        + (_map_key() if mapped else "")
        + (f"<h3>Answered right</h3>{right}" if right else "")
        + (f"<h3>Answered wrong</h3>{wrong}" if wrong else "")
    )
    return section("samples", title="Where it looked", body=body)


def _map_key() -> str:
    """How to read the maps."""
    meanings = "; ".join(f"<b>{name}</b>: {what}" for name, what in SCORE_MEANINGS.items())
    return (
        f'<p class="note">{meanings}. Dark cells were dropped and never reach the language model. '
        'Colours run from low<span class="ramp" style="background:linear-gradient(90deg,#1b0c41,'
        '#781c6d,#cf4446,#fb9b06,#f2ea69)"></span>high within each map. Point at a picture to see '
        "it without its map.</p>"
    )


def _limits_section(data: ReportData) -> str:
    notes = [
        "One training run with one seed: the intervals cover which held-out images were drawn, "
        "not how training would vary. Repeat with other seeds before claiming a margin.",
        *(SELECTOR_LIMITS if data.grounding is None else grounding_section.LIMITS),
    ]
    if isinstance(data.config.data.eval, ScenesSource):
        notes.insert(0,
            "The held-out images are generated scenes of flat shapes, signs and clutter. Results "
            "say nothing about photographs or documents until measured there.")  # fmt: skip
    if isinstance(data.config.data.eval, ScreensSource):
        notes.insert(0,
            "The held-out screens are generated pages of icons and words. Results say nothing "
            "about real applications until measured there: saccade eval --screens.")  # fmt: skip
    if _is_tiny(data):
        notes.insert(1,
            "The base model is tiny (about a million parameters); it stands in for the "
            "architecture, not for the abilities of a large one.")  # fmt: skip
    comparison = data.comparison or (data.grounding and data.grounding.comparison)
    if comparison and comparison["skipped"]:
        notes.append(f"{len(comparison['skipped'])} broken held-out rows were left out.")
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return section(
        "limits", title="What this does not show", body=f'<ul class="verdicts">{items}</ul>'
    )


def _is_tiny(data: ReportData) -> bool:
    plan = next((e for e in data.events if e["type"] == "plan"), None)
    # a later phase names the folder of the phase before, not the base that it came from
    return data.config.model.name == "tiny" or (plan or {}).get("parameters", TINY) < TINY
