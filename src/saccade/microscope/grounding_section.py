"""What the report says of a grounding run: accuracy against cost, looks by size, confidence.

In go the contents of a run directory (`comparison.json`, `evaluation.json`, `screens/*.json`,
stored episodes with their screenshots, events); out come the HTML sections. A part without its file
says which command writes it, or is left out. Left out: the page around it (`report.py`) and drawing
(`evaluation/grounding_plot.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from saccade.config.errors import SaccadeError
from saccade.config.schema import Config
from saccade.data.samples import DataError
from saccade.data.sources import open_source
from saccade.evaluation.grounding import read_rows, screens_folder
from saccade.evaluation.grounding_plot import figure_of
from saccade.evaluation.grounding_table import (
    COST_NAMES,
    PARTS,
    cost_cells,
    notes,
    percent,
    points,
    setting_lines,
    verdict_cells,
)
from saccade.evaluation.plot import Theme
from saccade.grounding.episodes import task_of
from saccade.microscope.grounding_cards import Shown, trajectory_cards
from saccade.microscope.markup import Column, picture, section, table, text
from saccade.training.rundir import RunDir, read_json

Data = Mapping[str, Any]
Pick = Callable[[Sequence[Shown], bool], list[Shown]]
"""Chooses which of the right (True) or wrong episodes are shown."""
log = logging.getLogger(__name__)

BOXES = {"clear": "ahead", "met": "ahead", "missed": "behind", "unknown": "unclear"}
"""How a bar stands -> the look of its box."""
LIMITS = (
    "A policy that looks again pays in pixels; the text it writes for that, and the time of a"
    " second pass, are told as tokens and not counted in the cost axis.",
    "Gates are compared on this policy's own two outcomes. A gate on a model that was never trained"
    " to zoom would look different.",
    "Confidence is the probability of the answer's own tokens. It is calibrated on validation"
    " targets of the same kind; on other screens it must be calibrated again.",
)


@dataclass(frozen=True)
class GroundingPage:
    """What the sections are made of."""

    evaluation: Data | None = None
    comparison: Data | None = None
    selectors: Data | None = None
    screens: Sequence[Data] = ()
    right: Sequence[Shown] = field(default_factory=tuple)
    wrong: Sequence[Shown] = field(default_factory=tuple)
    missing: str = ""


def read_page(run: RunDir, config: Config, *, pick: Pick) -> GroundingPage:
    """Collect a grounding run's files; what is absent or broken is told on the page."""
    right, wrong, missing = _episodes(run, config, pick=pick)
    folder = screens_folder(run)
    found = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return GroundingPage(
        evaluation=read_json(run.path / "evaluation.json"),
        comparison=read_json(run.path / "comparison.json"),
        selectors=read_json(run.path / "selectors.json"),
        screens=[one for one in map(read_json, found) if one is not None],
        right=right, wrong=wrong, missing=missing,
    )  # fmt: skip


def _episodes(run: RunDir, config: Config, *, pick: Pick) -> tuple[list[Shown], list[Shown], str]:
    if not run.predictions_file.is_file():
        return [], [], f"No episodes are stored yet: run saccade eval {run.path}."
    try:
        rows = [Shown(row, correct=bool(row["hit"])) for row in read_rows(run.predictions_file)]
        picked = {right: pick(rows, right) for right in (True, False)}
        wanted = {one.id for group in picked.values() for one in group}
        found = _with_screens(config, wanted)
    except (SaccadeError, KeyError, ValueError) as error:  # moved data, a file of another version
        log.warning("the report shows no episodes: %s", error)
        return [], [], f"No episodes are shown: {error}"
    shown = {
        right: [replace(found[one.id], row=one.row, correct=one.correct)
                for one in group if one.id in found]
        for right, group in picked.items()
    }  # fmt: skip
    return shown[True], shown[False], ""


def _with_screens(config: Config, wanted: Iterable[str]) -> dict[str, Shown]:
    """The screenshots of these targets, by the target's name."""
    missing, found = set(wanted), {}
    source = open_source(config.data.eval)
    for position in range(len(source)):
        if not missing:
            break
        try:
            sample = source[position]
            if sample.id not in missing:
                continue
            task = task_of(sample)
        except DataError as error:
            log.warning("not shown: %s", error)
            continue
        found[sample.id] = Shown({}, correct=False, image=task.image, loading=task.loading)
        missing.discard(sample.id)
    return found


def tiles(page: GroundingPage) -> str:
    """The few numbers a reader wants first."""
    shown: list[tuple[str, str]] = []
    if page.evaluation is not None and page.evaluation["accuracy"] is not None:
        found = page.evaluation
        shown.append((percent(found["accuracy"]) + "%", "of the targets clicked"))
        shown.append((percent(found["random"], digits=2) + "%", "clicking at random"))
        shown.append((percent(found["zoom_rate"]["share"]) + "%", "of the targets looked at again"))
    if page.comparison is not None:
        rows = {row["arm"]: row for row in page.comparison["rows"]}
        for arm, words in (("never", "never looking again"), ("always", "always looking again")):
            shown.append((percent(rows[arm]["accuracy"]) + "%", f"clicked by {words}"))
        share = rows["learned"]["pixels"] / rows["always"]["pixels"]
        shown.append((percent(share) + "%", "of the pixels of always looking again"))
    boxes = "".join(
        f'<div class="tile"><b>{v}</b><span>{text(what)}</span></div>' for v, what in shown
    )
    return f'<div class="tiles">{boxes}</div>' if boxes else ""


def sections_of(page: GroundingPage, *, run: str, seed: int) -> tuple[list[str], str]:
    """Comparison, trajectories, accuracy and other screens; and the pictures' style rules."""
    samples, rules = _samples(page, seed=seed)
    parts = [
        _comparison(page.comparison, run=run), _selectors(page.selectors), samples,
        _accuracy(page.evaluation, run=run), _screens(page.screens),
    ]  # fmt: skip
    return [part for part in parts if part], rules


def _comparison(result: Data | None, *, run: str) -> str:
    title = "Accuracy against cost"
    if result is None:
        body = f"<p>Not measured yet: run <code>saccade compare {text(run)}</code>.</p>"
        return section("comparison", title=title, body=body)
    body = (
        f'<p class="muted">{result["samples"]} held-out targets, {result["small_samples"]} of them'
        f" small (below {result['small_below']:.1f} pixels of the first look). Gates send"
        " targets to a second look by a number; every gate decides between the same two outcomes."
        f" Thresholds and calibration come from {result['validation_samples']} validation"
        " targets.</p>"
        + _bars(result)
        + _figure("accuracy_cost", result)
        + _arms(result)
        + "<h3>By size of the target</h3>"
        + _figure("zoom_by_size", result)
        + _sizes(result)
        + "<h3>Confidence of the answer at first look</h3>"
        + _figure("calibration", result)
        + _prices(result)
    )
    return section("comparison", title=title, body=body)


def _selectors(result: Data | None) -> str:
    """Ways to read a look; left out where no selector was compared."""
    if result is None:
        return ""
    columns = [
        Column("what is read", lambda r: text(r["title"]), is_text=True),
        Column("in box %", lambda r: percent(r["accuracy"]), lambda r: r["accuracy"]),
        Column("95% interval", lambda r: f"{percent(r['low'])} to {percent(r['high'])}"),
        Column("small %", lambda r: percent(r["accuracy_small"]), lambda r: r["accuracy_small"]),
        Column("looks again %", lambda r: percent(r["zoom_rate"]), lambda r: r["zoom_rate"]),
        *(Column(name, partial(_cost, part)) for part, name in enumerate(COST_NAMES)),
        Column("selector better by", lambda r: "" if r["ours"] else points(r["difference"])),
    ]
    inner = table(
        columns, result["readings"], caption="Ways to read a look",
        row_class=lambda r: "trained" if r["ours"] else "",
    )  # fmt: skip
    body = (
        f'<p class="muted">{result["samples"]} held-out targets; the policy stays as it is, what it'
        " is given of every look differs. Costs are means per target over all its looks.</p>"
    )
    return section("selectors", title="Reading less of each look", body=body + inner)


def _cost(part: int, row: Data) -> str:
    return cost_cells(row["costs"])[part]


def _bars(result: Data) -> str:
    boxes = []
    for one in result["verdicts"]:
        name, value, interval, bar, standing = verdict_cells(one)
        inner = f"{text(value)}" + (f" [{text(interval)}]" if interval else "")
        asked = f"; asked {text(bar)}" if bar else ""
        boxes.append(
            f'<div class="{BOXES[one["standing"]]}"><strong>{inner}</strong>'
            f"<p>{text(name)}{asked}: {text(standing)}.</p></div>"
        )
    return f'<div class="verdict">{"".join(boxes)}</div>'


def _figure(name: str, result: Data) -> str:
    def draw(theme: Theme) -> Figure:
        return figure_of(name, result, theme=theme)

    return f'<div class="plots">{picture(draw, alt=ALTS[name](result))}</div>'


def _alt_cost(result: Data) -> str:
    rows = [f"{row['title']}: {percent(row['accuracy'])}% at {row['pixels'] / 1000:.1f} thousand"
            for row in result["rows"]]  # fmt: skip
    return "Accuracy against mean pixels. " + "; ".join(rows)


def _alt_sizes(result: Data) -> str:
    rows = [f"{row['bucket']} px: {percent(row['zoom_rate'])}%" for row in result["zoom_by_size"]]
    return "Targets looked at again by size. " + "; ".join(rows)


def _alt_calibration(result: Data) -> str:
    rows = [f"{name}: Brier {one['brier']:.3f}, ECE {one['ece']:.3f}"
            for name, one in result["calibration"].items()]  # fmt: skip
    return "Reliability of the confidence. " + "; ".join(rows)


ALTS: Mapping[str, Callable[[Data], str]] = {
    "accuracy_cost": _alt_cost, "zoom_by_size": _alt_sizes, "calibration": _alt_calibration,
}  # fmt: skip


def _arms(result: Data) -> str:
    columns = [
        Column("who looks again", lambda r: text(r["title"]), is_text=True),
        Column("in box %", lambda r: percent(r["accuracy"]), lambda r: r["accuracy"]),
        Column("95% interval", lambda r: f"{percent(r['low'])} to {percent(r['high'])}"),
        Column("small %", lambda r: percent(r["accuracy_small"]), lambda r: r["accuracy_small"]),
        Column("looks again %", lambda r: percent(r["zoom_rate"]), lambda r: r["zoom_rate"]),
        Column("kpixels", lambda r: f"{r['pixels'] / 1000:.1f}", lambda r: r["pixels"]),
        Column("learned better by", lambda r: _better(r, "difference")),
        Column("on small targets", lambda r: _better(r, "difference_small")),
    ]
    inner = table(
        columns, result["rows"], caption="Ways to look",
        row_class=lambda r: "trained" if r["arm"] == "learned" else "",
    )  # fmt: skip
    return inner + (
        '<p class="note">Differences in points with 95% intervals, paired by screenshot. "At equal'
        " pixels\" = at exactly the learned policy's mean cost, the least certain first.</p>"
    )


def _sizes(result: Data) -> str:
    columns = [
        Column("in box %, by side of the target", lambda r: text(r["title"]), is_text=True),
        *(_bucket(name) for name in result["buckets"]),
    ]
    return table(
        columns, result["rows"], caption="Accuracy by size of the target",
        row_class=lambda r: "trained" if r["arm"] == "learned" else "",
    )  # fmt: skip


def _better(row: Data, key: str) -> str:
    return "" if row["arm"] == "learned" else points(row[key])


def _bucket(name: str) -> Column:
    return Column(
        f"{name} px", lambda r: percent(r["by_bucket"][name]), lambda r: r["by_bucket"][name],
        shaded=True,
    )  # fmt: skip


def _prices(result: Data) -> str:
    names = list(result["prices"][0]["arms"]) if result["prices"] else []
    rows = [
        {"arm": name, **{f"{one['price']:g}": one["arms"][name] for one in result["prices"]}}
        for name in names
    ]
    columns = [Column("who looks again", lambda r: text(r["arm"]), is_text=True)]
    for one in result["prices"]:
        columns += _price_columns(f"{one['price']:g}")
    inner = table(
        columns, rows, row_class=lambda r: "trained" if r["arm"] == "learned" else "",
        caption="Worth at prices of a look",
    )  # fmt: skip
    return (
        "<h3>When a look has a price</h3>"
        '<p class="note">Worth = accuracy minus price times looks, in points. Each gate looks again'
        " below the confidence (or size) that was worth most on validation.</p>"
        f"<details><summary>Worth of every gate at {len(result['prices'])} prices</summary>"
        f"{inner}</details>"
    )


def _price_columns(price: str) -> list[Column]:
    return [
        Column(f"worth at {price}", lambda r: percent(r[price]["worth"]),
               lambda r: r[price]["worth"]),
        Column("looks %", lambda r: percent(r[price]["zoom_rate"])),
        Column("below", lambda r: "" if r[price]["tau"] is None else f"{r[price]['tau']:.3g}"),
    ]  # fmt: skip


def _accuracy(result: Data | None, *, run: str) -> str:
    if result is None:
        body = f"<p>Not scored yet: run <code>saccade eval {text(run)}</code>.</p>"
        return section("accuracy", title="Accuracy", body=body)
    body = _scores(result) + _note(setting_lines(result["settings"]))
    return section("accuracy", title="Accuracy, point in box", body=body)


def _screens(found: Sequence[Data]) -> str:
    if not found:
        return ""
    body = '<p class="muted">Screens the policy was not trained on.</p>' + "".join(
        f"<h3>{text(one['name'])}</h3>{_scores(one)}" for one in found
    )
    return section("screens", title="Other screens", body=body)


def _scores(result: Data) -> str:
    rows = [
        {**found, "part": heading, "name": name}
        for part, heading in PARTS.items()
        for name, found in result["parts"][part].items()
    ]
    rows.append({**result, "part": "all", "name": ""})
    columns = [
        Column("targets", lambda r: text(r["part"]), is_text=True),
        Column("", lambda r: text(r["name"]), is_text=True),
        Column("in box %", lambda r: percent(r["accuracy"]), lambda r: r["accuracy"]),
        Column("95% interval", _interval),
        Column("random %", lambda r: percent(r["random"], digits=2), lambda r: r["random"]),
        Column("IoU >= 0.5 %", lambda r: percent(r["iou"]["share"]) if r["iou"] else ""),
        Column("looks again %", lambda r: percent(r["zoom_rate"]["share"])),
        Column("looks", lambda r: f"{r['looks']:.2f}", lambda r: r["looks"]),
        Column("kpixels", lambda r: f"{r['pixels'] / 1000:.1f}", lambda r: r["pixels"]),
        Column("visual tokens", _visual, lambda r: r.get("visual_tokens")),
        Column("written", lambda r: f"{r['tokens']:.1f}", lambda r: r["tokens"]),
        Column("targets", lambda r: str(r["samples"]), lambda r: r["samples"]),
    ]
    inner = table(
        [one for one in columns if any(one.show(row) for row in rows)], rows,
        row_class=lambda r: "trained" if r["part"] == "all" else "",
        caption="Accuracy by platform, element and size",
    )  # fmt: skip
    return inner + _note(notes(result))


def _note(lines: Sequence[str]) -> str:
    return f'<p class="note">{"<br>".join(map(text, lines))}</p>'


def _visual(row: Data) -> str:
    count = row.get("visual_tokens")
    return "" if count is None else f"{count:.1f}"


def _interval(row: Data) -> str:
    return "" if row["accuracy"] is None else f"{percent(row['low'])} to {percent(row['high'])}"


def _samples(page: GroundingPage, *, seed: int) -> tuple[str, str]:
    if not (page.right or page.wrong):
        note = page.missing or "No episodes to show."
        return section("samples", title="Episodes", body=f"<p>{text(note)}</p>"), ""
    right, right_rules = trajectory_cards(page.right, prefix="gr")
    wrong, wrong_rules = trajectory_cards(page.wrong, prefix="gw")
    body = (
        f'<p class="muted">Drawn by seed {seed} from the scored episodes, in turn those that'
        " looked again, that did not, and whose look was refused; nobody picked them.</p>"
        + (f"<h3>Right</h3>{right}" if page.right else "")
        + (f"<h3>Wrong</h3>{wrong}" if page.wrong else "")
    )
    return section("samples", title="Episodes", body=body), right_rules + wrong_rules
