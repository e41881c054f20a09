"""Whether a run's merged model still answers like its base with the adapter put on.

Some recipes write both `model/` (merged) and `adapter/` beside it. What is deployed, and what was
measured, is `model/`; here it is compared with the base and the adapter in two pieces on real
samples. Drift is an error. Left out: merging (`models/relevance/merge.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import SaccadeError

if TYPE_CHECKING:
    from saccade.data.samples import Sample
    from saccade.evaluation.load import Progress
    from saccade.models.relevance.merge import Parity
    from saccade.pipeline.deploy_source import Subject

MERGED_BESIDE = "adapter"


def check_merged(
    subject: Subject,
    *,
    samples: Sequence[Sample],
    tolerance: float | None,
    progress: Progress,
) -> Parity | None:
    """Compare the run's merged model with its two pieces; None where they are not both there.

    Raises InputError for the worst sample when a logit moves by more than the tolerance.
    """
    from saccade.models.relevance.merge import TOLERATED_SHARES, _compare, _read

    if subject.adapter is not None or (pieces := _in_pieces(subject)) is None:
        return None
    longest = subject.config.eval.max_new_tokens

    def readings(model: Any, what: str) -> list[Any]:
        found = []
        for done, sample in enumerate(samples):
            progress(what, done, len(samples))
            found.append(_read(model, sample, subject.renderer, max_new_tokens=longest))
        return found

    before = readings(pieces, "answering in two pieces")
    if tolerance is None:
        largest = max(float(one.logits_TV.abs().max()) for one in before)
        tolerance = largest * TOLERATED_SHARES.get(pieces.dtype, min(TOLERATED_SHARES.values()))
    return _compare(before, readings(subject.model, "answering merged"), tolerance=tolerance)


def _in_pieces(subject: Subject) -> Any:
    """The run's base with its adapter attached, or None when one of them is not here."""
    from saccade.config.schema import SelectorConfig
    from saccade.models.backbone import load_backbone
    from saccade.models.relevance.merge import attach_adapter
    from saccade.models.relevance.model import RelevanceModel
    from saccade.pipeline.deploy_source import ADAPTER_CARD

    if subject.run is None:
        return None
    folder: Path = subject.run.path / MERGED_BESIDE
    if not (folder / ADAPTER_CARD).is_file():
        return None
    try:
        backbone = load_backbone(subject.config.model)
    except SaccadeError:  # a base that has been moved away cannot be compared with
        return None
    if subject.selects:
        model = RelevanceModel.from_pretrained(subject.run.path / "model", backbone=backbone)
    else:
        model = RelevanceModel(backbone, SelectorConfig(keep=1.0)).eval()
    attach_adapter(model, folder)
    return model
