"""Sample cards of the report: one question, the answers, and where the selector looked.

In go `Explanation`s; out comes HTML. Each picture is embedded once as a style rule, and the maps
lie over it as images of one pixel per cell; pointing at a map shows the picture underneath. Left
out: choosing the samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from saccade.evaluation.cells import budget_label
from saccade.evaluation.records import Prediction
from saccade.microscope import overlays
from saccade.microscope.explain import POLES, SCORES, Explanation, View
from saccade.microscope.markup import text

LONGEST_PX = 448
SCORE_MEANINGS = {
    "information": "bits a cell adds over a coarse preview",
    "salience": "how much a cell stands out",
    "participation": "how well a cell matches the question",
    "balance": "what decides: the three, weighted cell by cell",
}


def cards(shown: Sequence[Explanation], *, prefix: str) -> tuple[str, str]:
    """HTML of the cards and the style rules that hold their pictures."""
    markup, rules = [], []
    for number, explanation in enumerate(shown):
        frames = []
        for place, view in enumerate(explanation.views):
            name = f"{prefix}{number}-{place}"
            uri = overlays.photo_uri(view.image, longest_px=LONGEST_PX)
            rules.append(f'.{name}{{background-image:url("{uri}")}}')
            frames.append(_view(view, picture=name, question=explanation.sample.question))
        markup.append(_card(explanation, "".join(frames)))
    return f'<div class="cards">{"".join(markup)}</div>', "".join(rules)


def _card(shown: Explanation, frames: str) -> str:
    answers = []
    if shown.selected.arm != "full":
        answers.append(_answer(f"with {_budget(shown)}", shown.selected))
    if shown.everything is not None:
        answers.append(_answer("with every cell", shown.everything))
    truth = " or ".join(shown.sample.answers)
    answers.append(f"<div><span>truth</span><b>{text(truth)}</b></div>")
    return (
        f'<article class="card"><span class="kind">{text(shown.sample.kind)}</span>'
        f"<h4>{text(shown.sample.question)}</h4>"
        f'<div class="answers">{"".join(answers)}</div>{frames}</article>'
    )


def _budget(shown: Explanation) -> str:
    counted = isinstance(shown.keep, int)
    return budget_label(shown.keep) + ("" if counted else " of the cells")


def _answer(label: str, prediction: Prediction) -> str:
    word, mark = ("good", "&#10003;") if prediction.correct else ("bad", "&#10007;")
    spoken = "right" if prediction.correct else "wrong"
    said = text(prediction.prediction) or '<span class="muted">(nothing)</span>'
    return (
        f"<div><span>{text(label)}</span>"
        f'<b class="{word}">{said} <span aria-label="{spoken}" role="img" '
        f'style="display:inline;font-size:inherit;color:inherit">{mark}</span></b></div>'
    )


def _view(view: View, *, picture: str, question: str) -> str:
    frames = [_kept_frame(view, picture=picture)]
    for name in (*SCORES, "balance"):
        if name in view.maps:
            frames.append(_heat_frame(view, name, picture=picture, question=question))
    return f'<div class="frames">{"".join(frames)}</div>{_dials(view)}'


def _kept_frame(view: View, *, picture: str) -> str:
    caption = f"<b>kept</b> {view.kept} of {view.full} cells"
    label = f"The {view.kept} kept cells of {view.full}; dropped cells are dark."
    shape = ""
    if view.answer_cells:
        count = len(view.answer_cells)
        caption += f"; {view.answer_cells_kept} of the {count} that carry the answer (outlined)"
        label += f" {view.answer_cells_kept} of {count} answer cells are kept."
        shape = _outline(view)
    overlay = overlays.png_uri(overlays.dropped(view.keep_HW))
    return _frame(view, overlay, picture=picture, label=label, caption=caption, extra=shape)


def _heat_frame(view: View, name: str, *, picture: str, question: str) -> str:
    values_HW = view.maps[name]
    weight = view.weights.get(name)
    caption = f"<b>{name}</b>" + ("" if weight is None else f", weight {weight:.2f}")
    row, column = divmod(int(values_HW.argmax()), values_HW.shape[1])
    label = (
        f"Heat map of {name} ({SCORE_MEANINGS[name]}) for the question {question!r}; "
        f"highest in row {row + 1} of {values_HW.shape[0]}, "
        f"column {column + 1} of {values_HW.shape[1]}."
    )
    overlay = overlays.png_uri(overlays.heat(values_HW))
    return _frame(view, overlay, picture=f"grey {picture}", label=label, caption=caption)


def _frame(
    view: View, overlay: str, *, picture: str, label: str, caption: str, extra: str = ""
) -> str:
    width, height = view.image.size
    return (
        f'<figure><div class="frame {picture}" role="img" aria-label="{text(label)}" '
        f'style="aspect-ratio:{width}/{height}"><img alt="" src="{overlay}">{extra}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _outline(view: View) -> str:
    rows, columns = view.keep_HW.shape
    edges = overlays.outline(view.answer_cells, grid=(rows, columns))
    path = "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in edges)
    return (
        f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="under" d="{path}"/><path d="{path}"/></svg>'
    )


def _dials(view: View) -> str:
    if not view.weights and not view.tensions:
        return ""
    parts = []
    if view.weights:
        total = sum(view.weights.values()) or 1.0
        bars = "".join(
            f'<i class="{name}" style="width:{100 * value / total:.1f}%"></i>'
            for name, value in view.weights.items()
        )
        names = "".join(
            f'<span><i class="dot {name}"></i>{name} {value:.2f}</span>'
            for name, value in view.weights.items()
        )
        parts.append(
            f'<div>mean weights in the balance<div class="mix" aria-hidden="true">{bars}</div>'
            f'<div class="legend">{names}</div></div>'
        )
    if view.tensions:
        parts.append(f"<div>{''.join(_dial(n, v) for n, v in view.tensions.items())}</div>")
    return f'<div class="dials">{"".join(parts)}</div>'


def _dial(name: str, value: float) -> str:
    low, high = POLES[name]
    place = 100 * max(0.0, min(1.0, value))
    return (
        f'<div class="dial" role="img" aria-label="{value:.2f} from {low} to {high}">'
        f"<span>{low}</span>"
        f'<span class="track"><i style="left:{place:.0f}%"></i></span>'
        f"<span>{high} {value:.2f}</span></div>"
    )
