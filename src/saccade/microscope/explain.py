"""What a selector did with a sample, as plain arrays and text: the microscope's one data type.

In go a loaded run and samples; out come `Explanation`s: pictures, kept cells, the three scores,
their weights and balance, tensions, and the answers with and without selection. Figures, the
report and `look` only draw these. Left out: drawing, and choosing which samples to show.

Shapes: H x W cells of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from saccade.config.schema import Budget
from saccade.data.images import load_image
from saccade.data.samples import Sample
from saccade.evaluation.load import LoadedRun
from saccade.evaluation.records import Prediction

SCORES = ("information", "salience", "participation")
POLES = {
    "compress": ("particularise", "compress"),
    "explore": ("exploit", "explore"),
    "diversify": ("focus", "diversify"),
}
"""The poles of each opponent tension: what 0 means, and what 1 means."""


@dataclass(frozen=True)
class View:
    """One image of a sample and what the selector made of it."""

    image: Image.Image
    full: int
    kept: int
    keep_HW: np.ndarray
    maps: dict[str, np.ndarray]  # scores, weight_<score>, balance
    tensions: dict[str, float]
    answer_cells: tuple[int, ...] = ()
    textures: dict[str, np.ndarray] = field(default_factory=dict)
    replaced: bool = False  # tokens were merged or the image shrunk: no cell was chosen

    @property
    def weights(self) -> dict[str, float]:
        """Mean weight of each score in the balance."""
        found = {name: self.maps.get(f"weight_{name}") for name in SCORES}
        return {name: float(one.mean()) for name, one in found.items() if one is not None}

    @property
    def answer_cells_kept(self) -> int:
        flat = self.keep_HW.reshape(-1)
        return sum(bool(flat[cell]) for cell in self.answer_cells)


@dataclass(frozen=True)
class Explanation:
    """One question: the answer after selection beside the answer with every token."""

    sample: Sample
    views: tuple[View, ...]
    selected: Prediction
    everything: Prediction | None
    keep: Budget


def explain(
    loaded: LoadedRun, samples: Sequence[Sample], *, arm: str, keep: Budget
) -> list[Explanation]:
    """Answer the samples with the selector and with all tokens, and collect the maps."""
    if not samples:
        return []
    batch, _ = loaded.batch(samples)
    features = loaded.features(batch)
    full = loaded.answer(batch, arm="full", keep=1.0, seed=0, features=features)
    reduced, predictions = loaded.reduce_and_answer(
        batch, arm=arm, keep=keep, seed=0, features=features
    )
    found, start = [], 0
    for row, sample in enumerate(batch.samples):
        span = slice(start, start + batch.images_of[row])
        start = span.stop
        views = views_of(sample, reduced, span=span, features=features)
        found.append(Explanation(sample, tuple(views), predictions[row], full[row], keep))
    return found


def views_of(sample: Sample, reduced: Any, *, span: slice, features: Any) -> list[View]:
    """One `View` per image of a sample: images `span` of a batch's reduced inputs."""
    if reduced is None:  # text only
        return []
    maps, tensions = reduced.maps or [], reduced.tensions or []
    textures = features.grid.split(features.textures.channels_NC)
    views = []
    for place, (number, picture) in enumerate(
        zip(range(span.start, span.stop), sample.images, strict=True)
    ):
        selection = reduced.images[number]
        grid = tuple(selection.grid)
        known = tuple(sample.facts.get("grid", ())) == grid and place == 0
        keep_HW = selection.keep_HW
        views.append(
            View(
                image=load_image(picture, where=f"sample {sample.id}"),
                full=int(selection.full),
                kept=int(selection.kept),
                keep_HW=np.ones(grid, bool) if keep_HW is None else keep_HW.cpu().numpy(),
                maps={n: m.float().cpu().numpy() for n, m in maps[number].items()} if maps else {},
                tensions=dict(tensions[number]) if tensions else {},
                answer_cells=tuple(sample.facts.get("answer_cells", ())) if known else (),
                textures=_channels(textures[number]),
                replaced=keep_HW is None,
            )
        )
    return views


def _channels(textures_HWC: Any) -> dict[str, np.ndarray]:
    from saccade.models.relevance.textures import CHANNELS

    values_HWC = textures_HWC.float().cpu().numpy()
    return {name: values_HWC[..., place] for place, name in enumerate(CHANNELS)}
