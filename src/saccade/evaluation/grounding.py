"""Score a grounding run: where it clicks, how often it looks again, and what that costs.

In goes a run of recipe `grounding` (and optionally a folder of screenshots in a layout of the
ScreenSpot family); out come `predictions.jsonl` (one episode per row: what was written, where every
picture lay) and `evaluation.json`, or `screens/NAME.jsonl` and `.json` beside them. Answers are
greedy and an episode does not depend on its batch. `rejudge` judges the stored rows again, without
a model. Broken rows are counted and named where `data.on_error=skip`. Left out: other ways to look
(`grounding_compare.py`) and what the scores are (`grounding_rows.py`).
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.config.screens import BoxMeaning, ScreenSpotSource
from saccade.data.samples import DataError, Sample
from saccade.data.sources import SampleSource, open_source
from saccade.evaluation.grounding_costs import cost_of, mean_costs
from saccade.evaluation.grounding_rows import scored, summarise
from saccade.evaluation.load import (
    Progress,
    fingerprint,
    no_progress,
    read_samples,
    select_indices,
    set_threads,
    weights_folder,
)
from saccade.evaluation.records import write_json
from saccade.grounding.episodes import (
    Episode,
    Facts,
    Task,
    before_look,
    mean_log_prob,
    row_of,
    task_of,
    verdict_of_row,
)
from saccade.training.provenance import versions
from saccade.training.rundir import RunDir, read_json, write_atomically

if TYPE_CHECKING:
    from saccade.grounding.dialogue import Dialogue
    from saccade.grounding.rollouts import Look

log = logging.getLogger(__name__)
PROMPT = "screenshot, then instruction"


def evaluate_grounding(
    run: RunDir,
    *,
    limit: int | None = None,
    checkpoint: Path | None = None,
    screens: Path | None = None,
    boxes: BoxMeaning = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Answer the held-out targets, or those of the folder `screens`, and write what came of it.

    `boxes` is what the numbers of that folder's boxes mean.

    Raises InputError when the run has no weights or no row can be scored.
    """
    config = run.config()
    dialogue = load_policy(run, checkpoint=checkpoint)
    wanted = config.data.eval
    if screens is not None:
        wanted = ScreenSpotSource(type="screenspot", path=screens, boxes=boxes)
    source = open_source(wanted)
    indices = select_indices(source, limit=limit)
    broken: list[DataError] = []
    rows: list[dict[str, Any]] = []
    for samples in batches(source, indices, config=config, broken=broken):
        progress("answering", len(rows), len(indices))
        rows += answer(dialogue, samples, run=run, look=usual_look(config), broken=broken)
    progress("answering", len(indices), len(indices))
    for error in broken:
        log.warning("skipped: %s", error)
    if not rows:
        raise InputError(
            "no target could be scored\n  fix: check the data with `saccade data check`"
        )
    details = {
        "recipe": config.recipe,
        "model": fingerprint(weights_folder(run, checkpoint=checkpoint)),
        "data": source.fingerprint(),
        "name": None if screens is None else screens_name(screens),
        "screens": None if screens is None else str(screens.resolve()),
        "skipped": [str(error) for error in broken],
        "settings": settings_of(dialogue),
    }
    return _write(files_of(run, screens), rows, details)


def rejudge_grounding(run: RunDir, *, screens: Path | None = None) -> dict[str, Any]:
    """Judge the stored episodes again, with the scoring rules as they are now; needs no model."""
    predictions, summary = files_of(run, screens)
    option = f" --screens {screens}" if screens else ""
    if not predictions.is_file():
        raise InputError(
            f"{predictions}: no stored answers\n  fix: run `saccade eval {run.path}{option}` first"
        )
    kept = ("recipe", "model", "data", "name", "screens", "skipped", "settings")
    before = read_json(summary) or {}
    missing = [name for name in kept if name not in before]
    if missing:
        raise InputError(
            f"{summary}: does not say {', '.join(missing)}"
            f"\n  fix: run `saccade eval {run.path}{option}` again"
        )
    if screens is not None and before["screens"] != str(screens.resolve()):
        raise InputError(
            f"{predictions}: holds answers on {before['screens']}, not on {screens.resolve()}"
            f"\n  fix: run `saccade eval {run.path} --screens {screens}`, which replaces them"
        )
    rows = [_judged(row) for row in read_rows(predictions)]
    return _write((predictions, summary), rows, {name: before[name] for name in kept})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Stored episodes; a torn last line (a killed writer) is left out."""
    lines = path.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One line per episode; readers see the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomically(path, text)


def _judged(row: dict[str, Any]) -> dict[str, Any]:
    found = verdict_of_row(row)
    if found is None:
        return {**row, "hit": False, "iou": None, "distance": None}
    distance = found.distance if math.isfinite(found.distance) else None
    return {**row, "hit": found.hit, "iou": found.iou, "distance": distance}


def _write(
    files: tuple[Path, Path], rows: Sequence[dict[str, Any]], details: Mapping[str, Any]
) -> dict[str, Any]:
    predictions, summary = files
    found = summarise([scored(row) for row in rows])
    result = {**details, **found, "costs": mean_costs(rows), "scores": {}}
    write_rows(predictions, rows)
    write_json(summary, result)
    return result


def files_of(run: RunDir, screens: Path | None) -> tuple[Path, Path]:
    """Where episodes and their summary are kept."""
    if screens is None:
        return run.predictions_file, run.path / "evaluation.json"
    folder, name = screens_folder(run), screens_name(screens)
    return folder / f"{name}.jsonl", folder / f"{name}.json"


def screens_folder(run: RunDir) -> Path:
    return run.path / "screens"


def screens_name(screens: Path) -> str:
    """The name that results of a folder (or an annotation file) are kept under."""
    place = screens.resolve()
    # by its ending: stored answers are judged again where the screens are gone
    is_file = place.suffix.lower() in (".json", ".jsonl", ".parquet") and not place.is_dir()
    return f"{place.parent.name}-{place.stem}" if is_file else place.name


def usual_look(config: Config) -> Look:
    """How a run is scored: freely, but for the phase that never saw a tool."""
    return "never" if config.grounding.phase == "places" else "free"


def batches(
    source: SampleSource, indices: Sequence[int], *, config: Config, broken: list[DataError]
) -> Iterator[list[Sample]]:
    """Samples in batches of `eval.batch_size`; broken rows go to `broken` or are raised."""
    skip, size = config.data.on_error == "skip", config.eval.batch_size
    for start in range(0, len(indices), size):
        samples, unread = read_samples(source, indices[start : start + size], skip_broken=skip)
        broken += unread
        yield samples


def answer(
    dialogue: Dialogue,
    samples: Sequence[Sample],
    *,
    run: RunDir,
    look: Look,
    broken: list[DataError],
    sampled: int = 0,
    split: str = "eval",
) -> list[dict[str, Any]]:
    """The rows of one greedy episode per sample, or of `sampled` at the training temperature."""
    from saccade.grounding.rollouts import first_answers, roll

    tasks = _tasks(samples, skip=dialogue.config.data.on_error == "skip", broken=broken)
    if not tasks:
        return []
    group = sampled or 1
    # seeds by the target's name: nobody's draws depend on who else is asked
    seeds = [[zlib.crc32(f"{one.sample.id} {k}".encode()) for k in range(group)] for one in tasks]
    episodes = roll(
        dialogue, tasks, group=group, seeds=seeds,
        temperature=dialogue.settings.grpo.temperature, look=look, greedy=not sampled,
    )  # fmt: skip
    looked = [task for task, (one, *_) in zip(tasks, episodes, strict=True) if one.screen.zooms]
    asked = looked if look == "free" and not sampled else []
    first = {one.task.sample.id: one for one in first_answers(dialogue, asked)}
    name = run.path.resolve().name
    return [
        row_of_episode(
            one, dialogue=dialogue, run=name, split=split, first=first.get(one.task.sample.id)
        )
        for group in episodes
        for one in group
    ]


def _tasks(samples: Sequence[Sample], *, skip: bool, broken: list[DataError]) -> list[Task]:
    tasks = []
    for sample in samples:
        try:
            tasks.append(task_of(sample))
        except DataError as error:
            if not skip:
                raise
            broken.append(error)
    return tasks


def row_of_episode(
    episode: Episode, *, dialogue: Dialogue, run: str, split: str, first: Episode | None
) -> dict[str, Any]:
    """An episode as it is kept; `first` is the answer without a look, where one was made."""
    sure = math.exp(mean_log_prob(episode)) if episode.finish == "answered" else None
    cost = cost_of(episode, dialogue=dialogue)
    before = before_look(first, config=dialogue.settings)
    facts = Facts(run=run, step=0, split=split, after=sure, extra=cost, **before)
    return row_of(episode, facts=facts, convention=dialogue.convention)


def load_policy(run: RunDir, *, checkpoint: Path | None = None) -> Dialogue:
    """The run's model with its newest weights, or those of `checkpoint`, ready for dialogues.

    Raises InputError when the run has no weights yet.
    """
    from saccade.grounding.dialogue import Dialogue
    from saccade.models.backbone import load_backbone
    from saccade.models.tools import tool_ready

    config = run.config()
    set_threads(config, earlier=(run.provenance() or {}).get("threads"))
    folder = weights_folder(run, checkpoint=checkpoint)
    if (folder / "state.json").is_file():
        return _unfinished(config, folder)
    own = config.model.model_copy(update={"name": str(folder), "revision": None})
    backbone = tool_ready(load_backbone(own))
    return Dialogue(backbone.model, backbone.processor, config=config)


def _unfinished(config: Config, folder: Path) -> Dialogue:
    """Rebuild what was trained and put a checkpoint's weights into it."""
    from saccade.grounding.dialogue import Dialogue
    from saccade.training.run import load_recipe
    from saccade.training.state import load_weights

    recipe: Any = load_recipe(config)
    load_weights(recipe.model, checkpoint=folder)
    recipe.model.eval()
    return Dialogue(recipe.base, recipe.processor, config=config)


def settings_of(dialogue: Dialogue) -> dict[str, Any]:
    """The conditions of a score: what the benchmarks' traps want told beside it."""
    settings, model = dialogue.settings, dialogue.config.model
    return {
        "min_pixels": model.min_pixels, "max_pixels": model.max_pixels,
        "crop_pixels": settings.zoom.pixels, "window": settings.zoom.window,
        "calls": settings.zoom.calls, "answer": settings.answer,
        "coordinates": dialogue.convention.name, "prompt": PROMPT, "temperature": 0.0,
        "look": usual_look(dialogue.config), "batch_size": dialogue.config.eval.batch_size,
        "dtype": str(dialogue.base.dtype).removeprefix("torch."),
        "selector": settings.selector,
        "keep": dialogue.config.selector.keep if settings.selector else None,
        "versions": versions(),
    }  # fmt: skip
