"""What the report says, section by section, from plain data.

In go the contents of a run directory (events, evaluation, comparison, provenance); out come the
HTML sections and the sentences of the verdict. A sentence is only written when the numbers carry
it: where the paired interval includes zero it says so, and the row at equal operations is never
left out. Left out: reading files and sample cards.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from saccade.evaluation.cells import budget_label
from saccade.evaluation.plot import (
    DARK,
    LIGHT,
    Theme,
    XAxis,
    comparison_figure,
    flops_text,
)
from saccade.evaluation.table import sorted_rows
from saccade.microscope.figures import training_figures
from saccade.microscope.markup import duration, facts, picture, section, text
from saccade.microscope.tables import comparison_table, evaluation_table, kinds_table, values_table
from saccade.training.events import step_series

Data = Mapping[str, Any]


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


@dataclass(frozen=True)
class Verdict:
    """What the numbers say at one budget; `standing` is against the best rival at equal tokens."""

    headline: str
    sentences: tuple[str, ...]
    standing: Literal["ahead", "unclear", "behind"]


def verdicts(comparison: Data) -> list[Verdict]:
    """One verdict per budget at which the trained selector has a rival."""
    found = []
    for budget in comparison["budgets"]:
        rows = [r for r in comparison["rows"] if r["budget"] == budget and r["arm"] != "full"]
        ours = next((r for r in rows if r["arm"] == "trained"), None)
        rivals = [r for r in rows if r["difference"] and r["matched"] == "tokens"]
        if ours is None or not rivals:
            continue
        best = max(rivals, key=lambda row: row["accuracy"])
        sentences = [_against(best)]
        equal_cost = next((r for r in rows if r["matched"] == "flops"), None)
        if equal_cost is not None and equal_cost["difference"]:
            sentences.append(_at_equal_cost(equal_cost))
        headline = f"{budget_label(budget)} of the visual tokens: {percent(ours['accuracy'])} right"
        found.append(Verdict(headline, tuple(sentences), standing(best["difference"])))
    return found


def standing(difference: Data) -> Literal["ahead", "unclear", "behind"]:
    """Where the trained selector stands, judged by the paired 95 % interval."""
    if not difference["clear"]:
        return "unclear"
    return "ahead" if difference["mean"] > 0 else "behind"


def _against(row: Data) -> str:
    name = f"{row['title']} at {percent(row['accuracy'])}"
    words = {
        "ahead": f"Ahead of the best other selector, {name}, by",
        "unclear": f"Not clearly apart from the best other selector, {name}:",
        "behind": f"Behind the best other selector, {name}:",
    }[standing(row["difference"])]
    return f"{words} {_points(row['difference'])}."


def _at_equal_cost(row: Data) -> str:
    kept = percent(row["visual_tokens_kept"] / row["visual_tokens_full"])
    words = {
        "ahead": "the trained selector is ahead by",
        "unclear": "no clear difference,",
        "behind": "resizing is ahead, trained minus resize",
    }[standing(row["difference"])]
    return (
        f"Resizing saves in the vision tower too: at the same operations it may keep {kept} of "
        f"the tokens and answers {percent(row['accuracy'])} right; {words} "
        f"{_points(row['difference'])}."
    )


def _points(found: Data) -> str:
    return f"{100 * found['mean']:+.1f} points (95% interval {_interval(found)})"


def _interval(found: Data) -> str:
    return f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"


def tiles(evaluation: Data | None, comparison: Data | None) -> str:
    """The few numbers a reader wants first."""
    shown: list[tuple[str, str]] = []
    if evaluation is not None:
        tokens = evaluation["tokens"]
        kept = percent(tokens["visual_tokens_kept"] / max(1e-9, tokens["visual_tokens_full"]))
        shown.append((percent(evaluation["accuracy"]), f"right with {kept} of the visual tokens"))
        shown.append(
            (percent(evaluation["majority"]), "right by always giving the commonest answer")
        )
    if comparison is not None:
        rows = comparison["rows"]
        full = next((r for r in rows if r["arm"] == "full"), None)
        if full is not None and (evaluation or {}).get("arm") != "full":
            shown.append((percent(full["accuracy"]), "right with every visual token"))
        ours = [r for r in rows if r["arm"] == "trained"]
        if ours:
            leanest = min(ours, key=lambda row: row["visual_tokens_kept"])
            shown.append(
                (percent(leanest["accuracy"]), f"right with {leanest['visual_tokens_kept']:.0f} of "
                 f"{leanest['visual_tokens_full']:.0f} visual tokens")
            )  # fmt: skip
            share = percent(1 / leanest["flops_speedup"])
            floor = percent(1 / comparison["ceiling"])
            shown.append(
                (share, "of the operations of reading everything, selector included; dropping "
                 f"after the encoder can go down to {floor}")
            )  # fmt: skip
    boxes = "".join(
        f'<div class="tile"><b>{value}</b><span>{what}</span></div>' for value, what in shown
    )
    return f'<div class="tiles">{boxes}</div>' if boxes else ""


def comparison_section(comparison: Data | None, *, run: str) -> str:
    if comparison is None:
        body = f"<p>Not measured yet: run <code>saccade compare {text(run)}</code>.</p>"
        return section("comparison", title="Comparison", body=body)
    plots = "".join(
        picture(
            functools.partial(_comparison_figure, comparison, x=x),
            alt=_plot_alt(comparison, x=x),
        )
        for x in ("tokens", "flops")
    )
    boxes = "".join(
        f'<div class="{one.standing}"><strong>{text(one.headline)}</strong>'
        + "".join(f"<p>{text(sentence)}</p>" for sentence in one.sentences)
        + "</div>"
        for one in verdicts(comparison)
    )
    samples = comparison["samples"]
    body = (
        f'<p class="muted">{samples} held-out questions, every selector on the same ones and, '
        "but for resizing, on the same encoded images. Hard selection; bands are 95% intervals.</p>"
        + (f'<div class="verdict">{boxes}</div>' if boxes else "")
        + _selector_note(comparison)
        + f'<div class="plots">{plots}</div>'
        + comparison_table(comparison)
        + '<p class="note">Differences are trained minus that row, in points, paired by image. '
        "Operations (a multiply-add counts 2) are means per question over vision tower, selector "
        "and language model; milliseconds are measured per question on the machine below, in a "
        "pass of their own; speed-ups are against every token. The KV cache after prefill holds "
        "the tokens that entered layer 0 (kB: in bfloat16). Answer cells: share of the cells that "
        "carry the answer and were kept.</p>" + kinds_table(comparison)
    )
    return section("comparison", title="Comparison at equal cost", body=body)


def _comparison_figure(comparison: Data, theme: Theme, *, x: XAxis) -> Figure:
    return comparison_figure(comparison, x=x, theme=theme)


def _selector_note(comparison: Data) -> str:
    """Say it when the selector is large beside the base: then operations are not saved."""
    ours = next((r for r in comparison["rows"] if r["arm"] == "trained"), None)
    full = next((r for r in comparison["rows"] if r["arm"] == "full"), None)
    if ours is None or full is None:
        return ""
    share = ours["flops"]["selector"] / full["flops"]["total"]
    if share < 0.1:
        return ""
    return (
        f'<p class="note">On this base the selector itself costs {percent(share)} of the '
        "operations of reading every token: its size hardly depends on the base, so what is a "
        "small part of a 2B model is a large part of a tiny one. Savings in operations cannot "
        "be read off here; "
        "<code>benchmarks/prefill.py</code> measures them at the published widths.</p>"
    )


def _plot_alt(comparison: Data, *, x: str) -> str:
    axis = "visual tokens" if x == "tokens" else "operations"
    parts = []
    for row in sorted_rows(comparison):
        if row["matched"] == "tokens" or x == "flops":
            place = (
                f"{row['visual_tokens_kept']:.0f}"
                if x == "tokens"
                else flops_text(row["flops"]["total"])
            )
            parts.append(f"{row['title']} at {place}: {percent(row['accuracy'])}")
    return f"Accuracy against {axis}. " + "; ".join(parts)


def evaluation_section(evaluation: Data | None, *, run: str) -> str:
    if evaluation is None:
        body = f"<p>Not scored yet: run <code>saccade eval {text(run)}</code>.</p>"
        return section("accuracy", title="Accuracy", body=body)
    inner = evaluation_table(evaluation)
    tokens = evaluation["tokens"]
    recall = tokens["answer_cells_kept"]
    kept = (
        f"<p>{tokens['visual_tokens_kept']:.1f} of {tokens['visual_tokens_full']:.1f} visual "
        f"tokens kept; {tokens['tokens_into_layer_0']:.1f} tokens enter layer 0 and stand in the "
        "KV cache after prefill"
        + ("" if recall is None else f"; {100 * recall:.0f}% of the answer-carrying cells are kept")
        + ".</p>"
    )
    return section("accuracy", title=f"Accuracy (selector: {evaluation['arm']})", body=kept + inner)


def training_section(events: Sequence[Data]) -> str:
    drawn = {theme.name: training_figures(events, theme=theme) for theme in (LIGHT, DARK)}
    if not drawn["light"]:
        return section("training", title="Training", body="<p>No step is logged yet.</p>")
    plots = "".join(
        picture(
            lambda theme, title=title: drawn[theme.name][title],
            alt=f"{title} over training steps. {_curve_ends(events, title)}",
        )
        for title in drawn["light"]
    )
    return section("training", title="Training", body=f'<div class="plots">{plots}</div>')


def _curve_ends(events: Sequence[Data], title: str) -> str:
    steps = [s for s in step_series(events) if s.get("loss") is not None]
    if title != "loss" or not steps:
        return ""
    first, last = steps[0], steps[-1]
    return (
        f"From {first['loss']:.3f} at step {first['step']} "
        f"to {last['loss']:.3f} at step {last['step']}."
    )


def timeline_section(events: Sequence[Data]) -> str:
    """Starts, resumes, warnings, interruptions and the end, in order."""
    shown = [item for item in (_timeline_item(event) for event in events) if item]
    if not shown:
        return ""
    start = events[0]["time"]
    items = "".join(
        f'<li class="{kind}"><time>+{duration(max(0.0, when - start))}</time>{text(words)}</li>'
        for when, kind, words in shown
    )
    saved = [event for event in events if event["type"] == "checkpoint"]
    note = ""
    if saved:
        last = saved[-1]
        note = (
            f'<p class="note">{len(saved)} checkpoints; the last, at step {last["step"]}, has '
            f"{last['bytes'] / 1e6:.1f} MB and took {duration(last['seconds'])}.</p>"
        )
    return section(
        "timeline", title="What happened", body=f'<ol class="timeline">{items}</ol>{note}'
    )


def _timeline_item(event: Data) -> tuple[float, str, str] | None:
    kind, when = event["type"], float(event["time"])
    if kind == "run_start":
        return (
            when,
            "",
            f"started on {event.get('device', '?')}, {event.get('threads', '?')} threads",
        )
    if kind == "resume":
        return when, "good", f"resumed at step {event['step']}"
    if kind == "warning":
        return when, "bad", f"warning: {event['message']}"
    if kind == "preempted":
        return when, "bad", f"asked to stop; saved at step {event['step']}"
    if kind == "failed":
        return when, "bad", f"failed: {event['message']}"
    if kind == "done":
        return when, "good", f"done at step {event['step']}"
    return None


def provenance_section(config: Data, provenance: Data | None, *, commands: Sequence[str]) -> str:
    body = "<p>The same commands on the same versions give the same numbers:</p>"
    body += f"<pre>{text(chr(10).join(commands))}</pre>"
    if provenance:
        versions, machine = provenance.get("versions", {}), provenance.get("machine", {})
        git = provenance.get("git")
        commit = "not run from a checkout"
        if git:
            commit = git["commit"][:12] + (" with uncommitted changes" if git["dirty"] else "")
        body += facts(
            [
                ("seed", provenance.get("seed")),
                ("commit", commit),
                ("machine", f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores"),
                ("threads", provenance.get("threads")),
                ("versions", ", ".join(f"{n} {v}" for n, v in versions.items())),
                ("data", ", ".join(f"{n} {v}" for n, v in provenance.get("data", {}).items())),
            ]
        )
    body += (
        f"<details><summary>All {len(config)} configuration values and their sources</summary>"
        f"{values_table(config, sources=(provenance or {}).get('sources', {}))}</details>"
    )
    return section("provenance", title="Reproduce", body=body)
