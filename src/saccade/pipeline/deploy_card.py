"""The model card and the Space's front matter: measured numbers only.

A run directory and the parity check flow in; Markdown flows out. Every number names the file it is
read from, the command that measured it and the day of that file; a file that was made with other
weights than the deployed ones is left out and said so; where nothing was measured, the card says
exactly that. Left out: measuring.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from saccade.models.relevance.merge import Parity
    from saccade.pipeline.deploy_source import Subject
    from saccade.training.rundir import RunDir

NOTHING = (
    "No quality of this model was measured. Nothing is known about how often its answers are right."
)
LICENSE = "apache-2.0"
PIPELINE_TAG = "image-text-to-text"


@dataclass(frozen=True)
class Measured:
    """Numbers of one file: what they are, how they came about, and when."""

    title: str
    command: str
    date: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def measured(subject: Subject) -> tuple[list[Measured], list[str]]:
    """What the run's own files say, and remarks about what is missing or does not count."""
    run = subject.run
    if run is None:
        return [], ["The model came as a folder, without a run that could have measured it."]
    if subject.named_adapter:
        return [], ["An adapter was merged in that the run's own numbers are not about."]
    weights = _fingerprint(run)
    found, remarks = [], []
    for make, file in ((_evaluation, "evaluation.json"), (_comparison, "comparison.json")):
        values = _read(run.path / file)
        if values is None:
            continue
        if weights is not None and values.get("model") not in (None, weights):
            remarks.append(f"`{file}` was made with other weights, so it is left out.")
            continue
        found.append(make(values, name=subject.name, date=_day(values, run.path / file)))
    done = run.done()
    if done is None:
        remarks.append("The training had not reached its last step.")
    elif done.get("metrics"):
        found.append(_training(done, name=subject.name, recipe=subject.recipe))
    return found, remarks


def model_card(subject: Subject, *, parity: Parity, versions: Mapping[str, str]) -> str:
    """README.md of the model itself, with the hub's metadata in front."""
    head: dict[str, Any] = {
        "license": LICENSE,
        "library_name": "saccade" if subject.selects else "transformers",
        "pipeline_tag": PIPELINE_TAG,
        "tags": ["saccade"],
    }
    if "/" in subject.base and not subject.base.startswith("."):
        head["base_model"] = subject.base
    return _front(head) + "\n".join([f"# {subject.name}", "", *_body(subject, parity, versions)])


def space_readme(subject: Subject, *, parity: Parity, versions: Mapping[str, str]) -> str:
    """README.md of the Space: the front matter it is built from, how to start it, and the card."""
    head = {
        "title": title_of(subject),
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": versions["gradio"],
        "python_version": "3.11",
        "app_file": "app.py",
        "pinned": False,
        "license": LICENSE,
        "short_description": "Ask about a picture",
        "tags": ["saccade"],
    }
    lines = [
        f"# {title_of(subject)}", "",
        "A page that answers questions about a picture you bring. It needs no GPU, no account and",
        "no network once its requirements are installed:", "",
        "```", "pip install -r requirements.txt", "python app.py", "```", "",
        "`model/` is the model, `saccade/` the part of saccade that runs it. What is uploaded is",
        "answered and not kept.", "",
        *_body(subject, parity, versions),
    ]  # fmt: skip
    return _front(head) + "\n".join(lines)


def title_of(subject: Subject) -> str:
    """What the page is called."""
    return f"Ask {subject.name}"


def _body(subject: Subject, parity: Parity, versions: Mapping[str, str]) -> list[str]:
    recipe = f", trained with the recipe `{subject.recipe}`" if subject.recipe else ""
    made = f" from `{subject.base}`" if subject.base else ""
    lines = ["## The model", "", f"A vision-language model made{made}{recipe}."]
    if subject.selects:
        share = subject.config.selector.keep
        asked = f"{share:.0%} of" if isinstance(share, float) else f"{share} of"
        lines.append(f"It reads {asked} the visual tokens, those that its selector chooses.")
    if subject.adapter is not None:
        lines.append(f"The adapter `{subject.adapter_name}` is merged into the weights.")
    same = parity.samples - parity.answers_changed
    lines += [
        "", "## Checked before it was written", "",
        f"The written folder was loaded anew and compared with the model as it was trained (any"
        f" adapter apart) on {parity.samples} held-out samples: the largest difference of a logit"
        f" is {parity.largest_drift:.2g} (allowed: {parity.tolerance:.2g}), and {same} of"
        f" {parity.samples} answers are the same.",
        "", "## Measured", "",
    ]  # fmt: skip
    found, remarks = measured(subject)
    for one in found:
        lines += [f"### {one.title}", "", f"`{one.command}`, {one.date}.{one.note}", ""]
        lines += [*_table(one.head, one.rows), ""]
    lines += [NOTHING, ""] if not found else []
    lines += [*remarks, ""] if remarks else []
    lines += ["## Versions", "", *_table(("package", "version"), sorted(versions.items())), ""]
    return lines


def _evaluation(values: Mapping[str, Any], *, name: str, date: str) -> Measured:
    arm, keep = values.get("arm"), values.get("keep")
    budget = "" if arm == "full" or keep is None else f" --keep {keep:g}"
    rows = [("all", values)]
    rows += sorted((values.get("kinds") or {}).items())
    majority = values.get("majority")
    return Measured(
        title="On held-out samples",
        command=f"saccade eval {name}{budget}",
        date=date,
        head=("questions", "score", "95 % interval", "commonest answer", "samples"),
        rows=tuple(
            (
                kind, f"{one['accuracy']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}",
                "" if (blind := one.get("majority", majority)) is None else f"{blind:.3f}",
                str(one["samples"]),
            )
            for kind, one in rows
        ),
        note=f" Score: {', '.join(values.get('metrics', ['accuracy']))}; data `{values['data']}`."
        " The commonest answer is what always guessing it would score.",
    )  # fmt: skip


def _comparison(values: Mapping[str, Any], *, name: str, date: str) -> Measured:
    if values.get("recipe") == "grounding":
        return _looks(values, name=name, date=date)
    shown = [row for row in values["rows"] if row.get("matched", "tokens") == "tokens"]
    return Measured(
        title="Beside other ways of choosing tokens",
        command=f"saccade compare {name}",
        date=date,
        head=("selector", "visual tokens", "score", "95 % interval"),
        rows=tuple(
            (
                row.get("title", row["arm"]), row.get("budget_label", str(row["budget"])),
                f"{row['accuracy']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}",
            )
            for row in shown
        ),
        note=f" {values['samples']} samples of `{values['data']}`.",
    )  # fmt: skip


def _looks(values: Mapping[str, Any], *, name: str, date: str) -> Measured:
    return Measured(
        title="Beside other rules for looking again",
        command=f"saccade compare {name}",
        date=date,
        head=("who looks again", "thousand pixels", "score", "95 % interval"),
        rows=tuple(
            (
                row["title"], f"{row['pixels'] / 1000:.1f}",
                f"{row['accuracy']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}",
            )
            for row in values["rows"]
        ),
        note=f" {values['samples']} targets of `{values['data']['test']}`.",
    )  # fmt: skip


def _training(done: Mapping[str, Any], *, name: str, recipe: str) -> Measured:
    return Measured(
        title="At the end of training",
        command=f"saccade train {recipe} run.name={name}",
        date=_utc(done.get("time")),
        head=("number", "value"),
        rows=tuple((key, f"{value:.4g}") for key, value in sorted(done["metrics"].items())),
        note=f" Step {done['target_step']}; what `DONE` says.",
    )


def _fingerprint(run: RunDir) -> str | None:
    """The name that scoring gives to the run's weights, where scoring knows the run."""
    from saccade.config.errors import SaccadeError
    from saccade.evaluation.load import model_fingerprint

    try:
        return model_fingerprint(run)
    except SaccadeError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    import json

    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) and ("accuracy" in found or "rows" in found) else None


def _day(values: Mapping[str, Any], path: Path) -> str:
    """When it was measured: what the file says, else the day the file was written."""
    return _utc(values.get("time", path.stat().st_mtime))


def _utc(seconds: float | None) -> str:
    return "day unknown" if seconds is None else time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows)]


def _front(values: Mapping[str, Any]) -> str:
    return "---\n" + yaml.safe_dump(dict(values), sort_keys=False) + "---\n\n"
