"""Compare ways to look: roll out one model in four ways on validation and test targets.

In goes a run of recipe `grounding`; out come `comparison.json` and `figures/*.png`. Every target is
answered greedily without a second look, greedily with one, greedily and free, and several times at
the training temperature without (for the dispersion gate); `comparison/SPLIT-WAY.jsonl` keeps the
episodes as they come, so an interrupted comparison continues and a finished one is only summarised
again. Left out: what the arms are made of them (`grounding_arms.py`).
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.config.screens import GroundingFilesSource, ScreensSource
from saccade.data.samples import DataError, Sample
from saccade.data.sources import SampleSource, open_source
from saccade.evaluation.cells import KeyedLines
from saccade.evaluation.grounding import answer, batches, load_policy, settings_of, usual_look
from saccade.evaluation.grounding_arms import Rolled, compare_arms
from saccade.evaluation.grounding_costs import selector_key
from saccade.evaluation.grounding_plot import save_grounding
from saccade.evaluation.grounding_rows import Scored, scored
from saccade.evaluation.load import (
    Progress,
    fingerprint,
    select_indices,
    spread_evenly,
    weights_folder,
)
from saccade.evaluation.records import write_json
from saccade.training.rundir import RunDir, read_json

if TYPE_CHECKING:
    from saccade.grounding.dialogue import Dialogue
    from saccade.grounding.rollouts import Look

log = logging.getLogger(__name__)
SAMPLED = 8
"""Answers that the dispersion gate draws for each target."""
SMALL_SIDE = 8.0
"""Targets below this side in pixels of the first look are small, where the data do not say it."""
WAYS: dict[str, tuple[Look, int]]
WAYS = {"never": ("never", 0), "always": ("always", 0), "free": ("free", 0),
        "sampled": ("never", SAMPLED)}  # fmt: skip
"""Name -> whether it may look again, and how many episodes are sampled (0: one, greedy)."""
SPLITS = ("validation", "test")


def compare_grounding(run: RunDir, *, progress: Progress) -> dict[str, Any]:
    """Roll out what is missing, write `comparison.json` and the figures; returns the content.

    Raises InputError when the model cannot look again or too few targets have a box.
    """
    config = run.config()
    if usual_look(config) == "never" or not config.grounding.zoom.calls:
        raise InputError(
            f"{run.path}: this model never looks again, so there are no ways to compare"
            "\n  fix: compare the run of the last phase, with grounding.zoom.calls of 1 or more"
        )
    rollouts = Rollouts(run, progress=progress)
    rolled = {split: rollouts.rolled(split) for split in SPLITS}
    for split, found in rolled.items():
        if len(found) < 2 or len({one.screen for one in found.never}) < 2:
            raise InputError(
                f"{split}: {len(found)} targets with a box are too few to compare on"
                "\n  fix: raise eval.samples, or give data.eval more screenshots"
            )
    first = rolled["test"].never[0]
    result = {
        "v": 1, "run": str(run.path), "recipe": config.recipe, "model": rollouts.model,
        "data": {split: source.fingerprint() for split, source in rollouts.sources.items()},
        "splits": rollouts.how_split, "skipped": sorted(set(map(str, rollouts.broken))),
        "settings": rollouts.settings(), "samples_per_gate": SAMPLED,
        **compare_arms(
            rolled["test"], rolled["validation"], small_below=small_side(config, first),
            prices=config.grounding.tau_prices, seed=config.run.seed,
        ),
    }  # fmt: skip
    write_json(run.path / "comparison.json", result)
    save_grounding(result, folder=run.figures)
    return result


def small_side(config: Config, first: Scored) -> float:
    """Below which side, in pixels of the first look, a target is small."""
    source = config.data.eval
    if not isinstance(source, ScreensSource):
        return SMALL_SIDE
    return source.small_target * math.sqrt(first.first_pixels / (source.width * source.height))


def two_sources(config: Config) -> tuple[dict[str, SampleSource], str]:
    """Where validation and test targets come from, and how they were told apart.

    Sources that know splits are opened in both; of others, screenshots are halved by their names.
    """
    source = config.data.eval
    whole_file = isinstance(source, GroundingFilesSource) and source.path.suffix == ".parquet"
    if isinstance(source, ScreensSource | GroundingFilesSource) and not whole_file:
        opened = {
            split: open_source(source.model_copy(update={"split": split})) for split in SPLITS
        }
        return opened, "the source's own splits"
    one = open_source(source)
    return dict.fromkeys(SPLITS, one), "screenshots halved by a hash of their names"


@dataclass
class Rollouts:
    """The episodes of one comparison: what is on disk already, and what has to be rolled out."""

    run: RunDir
    progress: Progress
    broken: list[DataError] = field(default_factory=list)
    _dialogue: Dialogue | None = None

    def __post_init__(self) -> None:
        self.config = self.run.config()
        self.model = fingerprint(weights_folder(self.run))
        self.sources, self.how_split = two_sources(self.config)

    @property
    def dialogue(self) -> Dialogue:
        """The model, loaded when something is missing and never before."""
        if self._dialogue is None:
            self.progress("loading the model", 0, 1)
            self._dialogue = load_policy(self.run)
        return self._dialogue

    def settings(self) -> dict[str, Any]:
        """The conditions of the rollouts; kept beside them, so that reading needs no model."""
        path = self.run.path / "comparison" / "settings.json"
        known = read_json(path)
        if self._dialogue is None and known is not None and known["key"] == self._key("settings"):
            return known["settings"]
        found = settings_of(self.dialogue)
        write_json(path, {"key": self._key("settings"), "settings": found})
        return found

    def rolled(self, split: str) -> Rolled:
        """Judged episodes of a split's targets in all ways, in the order of the targets."""
        source = self.sources[split]
        indices = self.indices(split)
        files = {way: self._file(split, way) for way in WAYS}
        known = {way: _by_target(file.read()) for way, file in files.items()}
        wanted: list[str] = []
        broken: list[DataError] = []
        for done, samples in enumerate(batches(source, indices, config=self.config, broken=broken)):
            self.progress(
                f"rolling out ({split})", done * self.config.eval.batch_size, len(indices)
            )
            wanted += [sample.id for sample in samples]
            for way, file in files.items():
                missing = [one for one in samples if len(known[way][one.id]) < _count(way)]
                rows = self._roll(missing, way=way, split=split, broken=broken)
                file.append(rows)
                for row in rows:
                    known[way][row["id"]].append(scored(row))
        self.progress(f"rolling out ({split})", len(indices), len(indices))
        self.broken += broken
        return _aligned(wanted, known)

    def _roll(
        self, samples: Sequence[Sample], *, way: str, split: str, broken: list[DataError]
    ) -> list[dict[str, Any]]:
        look, sampled = WAYS[way]
        at_once = max(1, self.config.eval.batch_size // max(1, sampled))
        rows = []
        for start in range(0, len(samples), at_once):
            rows += answer(
                self.dialogue, samples[start : start + at_once], run=self.run, look=look,
                broken=broken, sampled=sampled, split=split,
            )  # fmt: skip
        return rows

    def indices(self, split: str) -> list[int]:
        """Positions of a split's targets that are asked."""
        source = self.sources[split]
        limit = self.config.eval.samples
        if self.how_split.startswith("the source"):
            return select_indices(source, limit=limit)
        groups = [
            group for group in source.groups()
            if zlib.crc32(_screen(source, group).encode()) % 2 == SPLITS.index(split)
        ]  # fmt: skip
        return spread_evenly(groups, limit=limit)

    def _file(self, split: str, way: str) -> KeyedLines:
        folder: Path = self.run.path / "comparison"
        return KeyedLines(folder / f"{split}-{way}.jsonl", key=self._key(split) | {"way": way})

    def _key(self, split: str) -> dict[str, Any]:
        source = self.sources.get(split)
        data = source.fingerprint() if source else ""
        return episodes_key(self.config, model=self.model, data=data)


def episodes_key(config: Config, *, model: str, data: str) -> dict[str, Any]:
    """All that episodes depend on."""
    settings = config.grounding
    return {
        "model": model, "data": data,
        "pixels": [config.model.min_pixels, config.model.max_pixels],
        "dtype": config.model.dtype, "attention": config.model.attention,
        "zoom": settings.zoom.model_dump(mode="json"), "tools": settings.tools,
        "answer": settings.answer, "coordinates": settings.coordinates,
        "stated": settings.reward.stated, "temperature": settings.grpo.temperature,
        "max_tokens": settings.grpo.max_tokens, "sampled": SAMPLED,
        **({"selector": selector_key(config)} if settings.selector else {}),
    }  # fmt: skip


def _screen(source: SampleSource, group: Sequence[int]) -> str:
    """Name of the screenshot that a group of positions shows."""
    for position in group:
        try:
            sample = source[position]
        except DataError:
            continue
        return sample.image_key or sample.id
    return f"broken-{group[0]}"


def _count(way: str) -> int:
    return WAYS[way][1] or 1


def _by_target(rows: Sequence[dict[str, Any]]) -> dict[str, list[Scored]]:
    found: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        found[row["id"]].append(scored(row))
    return found


def _aligned(wanted: Sequence[str], known: dict[str, dict[str, list[Scored]]]) -> Rolled:
    """Targets with a box that have all their episodes, in order."""
    ids = [
        one for one in dict.fromkeys(wanted)
        if all(len(known[way].get(one, ())) >= _count(way) for way in WAYS)
        and known["never"][one][0].hit is not None
    ]  # fmt: skip
    return Rolled(
        never=[known["never"][one][0] for one in ids],
        always=[known["always"][one][0] for one in ids],
        free=[known["free"][one][0] for one in ids],
        # the last ones: those of an interrupted call are there twice
        sampled=[known["sampled"][one][-SAMPLED:] for one in ids],
    )
