"""The pieces of the microscope's page as HTML: answers, kept cells, maps, differences, numbers.

In go `Asked` values; out come strings of HTML for `app.css`. A block embeds its picture once, as a
style rule, and lays overlays of one pixel per cell over it; nothing refers to a file or another
host. Every text that comes from data or from a person passes `text`. Left out: widgets and events
(`app.py`), and what is computed (`workbench.py`, `quality.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from saccade.evaluation.plot import flops_text
from saccade.microscope import overlays
from saccade.microscope.cards import SCORE_MEANINGS
from saccade.microscope.differences import difference, signs, texture, value_range
from saccade.microscope.explain import POLES, SCORES, View
from saccade.microscope.markup import text
from saccade.microscope.quality import Quality, overlap, quality
from saccade.microscope.workbench import Asked, Picture, Reading

LONGEST_PX = 512
DASHES = {"information": "7 3", "salience": "2 3", "participation": "10 3 2 3", "balance": ""}
"""Line patterns of the decay curves: they stay apart without colour."""


def status(kind: str, message: str) -> str:
    """The line that says how things are; `kind` is ready, busy, note or error."""
    role = "alert" if kind == "error" else "status"
    first, _, rest = message.partition("\n")
    more = f"<span>{text(rest.strip())}</span>" if rest.strip() else ""
    return f'<div class="sm-status {text(kind)}" role="{role}"><b>{text(first)}</b>{more}</div>'


def waiting(message: str) -> str:
    """What stands where results will be."""
    return f'<p class="sm-wait">{text(message)}</p>'


def chosen(picture: Picture | None) -> str:
    """The picture that questions are about."""
    if picture is None:
        return waiting("No picture is chosen yet.")
    width, height = picture.image.size
    uri = overlays.photo_uri(picture.image, longest_px=LONGEST_PX)
    return (
        f'<figure class="sm-chosen"><img src="{uri}" alt="{text(picture.name)}">'
        f"<figcaption><b>{text(picture.name)}</b>, {width} x {height} pixels</figcaption></figure>"
    )


def answers(asked: Asked) -> str:
    """Answers side by side, with tokens, operations and times of each reading."""
    readings = [asked.everything, asked.ours, *([asked.baseline] if asked.baseline else [])]
    whole = asked.everything
    rows = [
        ("visual tokens", [_tokens(one) for one in readings]),
        ("tokens into layer 0", [str(one.prediction.tokens) for one in readings]),
        (
            "operations",
            [_share(one.flops.total, whole.flops.total, flops_text) for one in readings],
        ),
        (
            "vision / selector / language",
            [
                " / ".join(
                    flops_text(part)
                    for part in (one.flops.vision, one.flops.selector, one.flops.language)
                )
                for one in readings
            ],
        ),
        ("see and choose", [f"{one.look_ms:.0f} ms" for one in readings]),
        ("read and answer", [f"{one.answer_ms:.0f} ms" for one in readings]),
    ]
    heads = "".join(f'<th scope="col">{_heading(one, asked)}</th>' for one in readings)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>'
        + "".join(f"<td>{text(value)}</td>" for value in values)
        + "</tr>"
        for name, values in rows
    )
    said = "".join(f"<td>{_said(one)}</td>" for one in readings)
    truth = " or ".join(asked.ours.prediction.answers)
    known = f'<p class="sm-note">Truth: <b>{text(truth)}</b></p>' if truth else ""
    return (
        f'<div class="sm-block sm-answers"><h3>{text(asked.question)}</h3><div class="sm-scroll">'
        f'<table><thead><tr><td></td>{heads}</tr></thead><tbody><tr class="said">'
        f'<th scope="row">answer</th>{said}</tr>{body}</tbody></table></div>{known}'
        '<p class="sm-note">Times are of this one run on this machine; what was seen once is kept, '
        "so only choosing and answering repeat when the budget moves. An operation is a multiply "
        "or an add.</p></div>"
    )


def kept(asked: Asked) -> str:
    """The picture beside the cells that each selector kept."""
    view, frames = asked.ours.view, []
    frames.append(_frame(view, "", asked.picture, caption="the picture", label="The picture."))
    for reading in (asked.ours, asked.baseline):
        if reading is not None:
            frames.append(_kept_frame(reading, asked.picture))
    note = ""
    if view.answer_cells:
        note = '<p class="sm-note">Outlined: the cells that carry the answer.</p>'
    return _block(asked.picture, view, f'<div class="sm-frames wide">{"".join(frames)}</div>{note}')


def why(asked: Asked) -> str:
    """Score maps, the balance that decides, where each score weighs, and the tensions."""
    view = asked.ours.view
    if not view.maps:
        return waiting(f"The selector here ({asked.ours.title}) has no scores to show.")
    names = [name for name in (*SCORES, "balance") if name in view.maps]
    scores = "".join(_score_frame(view, name, asked.picture) for name in names)
    weights = "".join(
        _frame(
            view, overlays.png_uri(overlays.heat(view.maps[f"weight_{name}"], fixed=True)),
            asked.picture, grey=True,
            caption=f"<b>weight of {text(name)}</b>, mean {view.weights[name]:.2f}",
            label=f"Weight of {name} per cell, from 0 to 1; mean {view.weights[name]:.2f}.",
        )
        for name in view.weights
    )  # fmt: skip
    return _block(
        asked.picture,
        view,
        f'<h3>Scores, and the balance that decides</h3><div class="sm-frames">{scores}</div>'
        f"{_ramp('low', 'high, each over its own range')}"
        f'<h3>How much each score counts, cell by cell</h3><div class="sm-frames">{weights}</div>'
        f"{_ramp('0', '1')}{_dials(view)}",
    )


def textures(asked: Asked) -> str:
    """All texture channels, each over its own range."""
    view = asked.ours.view
    frames = "".join(
        _frame(
            view, overlays.png_uri(texture(values_HW)), None,
            caption=f"<b>{text(name)}</b> {value_range(values_HW)}",
            label=f"Texture channel {name}, {value_range(values_HW)}.",
        )
        for name, values_HW in view.textures.items()
    )  # fmt: skip
    return _block(
        asked.picture,
        view,
        f'<div class="sm-frames small">{frames}</div>'
        + _ramp("low", "high, each over its own range", kind="texture"),
    )


def change(asked: Asked) -> str:
    """What changes between two questions about one picture."""
    if asked.other is None:
        return waiting("Ask a second question about the same picture to see what it changes.")
    pairs = [(asked.question, asked.ours), (asked.other_question, asked.other)]
    if asked.other_came_first:
        pairs.reverse()
    first, second = pairs[0][1].view, pairs[1][1].view
    shared = overlap(first, second)
    if shared is None:
        return waiting("These two choices cannot be compared cell by cell.")
    letters = "".join(
        f'<div><span class="sm-letter">{letter}</span><span>{text(question)}</span>'
        f"{_said(reading)}</div>"
        for letter, (question, reading) in zip("AB", pairs, strict=True)
    )
    label = (
        f"{shared.both} cells are kept for both questions, {shared.only_first} only for A, "
        f"{shared.only_second} only for B."
    )
    overlay = overlays.png_uri(difference(first, second))
    frames = [
        _frame(first, overlay, asked.picture, caption="<b>what changes</b> from A to B",
               label=label, extra=_signs(first, second)),
        _kept_frame(pairs[0][1], asked.picture, name="kept for A"),
        _kept_frame(pairs[1][1], asked.picture, name="kept for B"),
    ]  # fmt: skip
    legend = (
        '<div class="sm-legend"><span><i class="only-a">-</i>removed: only A keeps it '
        f'({shared.only_first})</span><span><i class="only-b">+</i>added: only B keeps it '
        f'({shared.only_second})</span><span><i class="both"></i>kept by both ({shared.both})'
        '</span><span><i class="none"></i>kept by neither</span></div>'
    )
    return _block(
        asked.picture,
        first,
        f'<div class="sm-pair">{letters}</div><div class="sm-frames wide">{"".join(frames)}</div>'
        f'{legend}<p class="sm-note">Overlap (IoU) {shared.iou:.2f}; two random choices of this '
        f"size would share {shared.by_chance:.2f}.</p>",
    )


def numbers(asked: Asked) -> str:
    """Quality numbers of each choice, score quartiles, and the decay of the scores."""
    found: list[tuple[str, Quality | None]] = [(asked.ours.title, quality(asked.ours.view))]
    if asked.baseline is not None:
        found.append((asked.baseline.title, quality(asked.baseline.view)))
    if asked.other is not None:
        found.append((f"for \u201c{asked.other_question[:40]}\u201d", quality(asked.other.view)))
    heads = "".join(f'<th scope="col">{text(name)}</th>' for name, _ in found)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>'
        + "".join(f"<td>{text(show(one)) if one else 'no cells chosen'}</td>" for _, one in found)
        + "</tr>"
        for name, show in NUMBERS.items()
    )
    ours = found[0][1]
    shared = overlap(asked.ours.view, asked.other.view) if asked.other else None
    between = ""
    if shared is not None:
        between = (
            f'<p class="sm-note">Overlap between the two questions (IoU): <b>{shared.iou:.2f}</b>; '
            f"by chance {shared.by_chance:.2f}.</p>"
        )
    return (
        '<div class="sm-block"><div class="sm-scroll"><table class="wrap"><thead><tr><td></td>'
        f"{heads}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>{between}"
        f"{_quartile_table(ours)}{_decay(ours)}</div>"
    )


NUMBERS = {
    "cells kept": lambda q: f"{q.kept} of {q.cells}",
    "answer cells kept": lambda q: (
        "not known" if q.answer_cell_recall is None else f"{100 * q.answer_cell_recall:.0f}%"
    ),
    "4x4 coverage": lambda q: f"{100 * q.coverage_4x4:.0f}% of the blocks",
    "spatial entropy, 8x8": lambda q: (
        f"{q.entropy_8x8_bits:.2f} of at most {q.entropy_8x8_most_bits:.2f} bits"
    ),
    "nearest neighbour": lambda q: (
        "one cell only"
        if q.nearest_neighbour_cells is None
        else f"{q.nearest_neighbour_cells:.2f} cells ({q.nearest_neighbour_ratio:.2f} x random)"
    ),
}
"""How each number reads."""


def _heading(reading: Reading, asked: Asked) -> str:
    if reading.arm == "full":
        return "every token"
    return f"{text(reading.title)}, {100 * asked.share:.0f}%"


def _said(reading: Reading) -> str:
    words = text(reading.prediction.prediction) or '<i class="sm-muted">(nothing)</i>'
    if not reading.known:
        return f"<b>{words}</b>"
    right = reading.prediction.correct
    name, mark, spoken = (
        ("good", "&#10003;", "right") if right else ("bad", "&#10007;", "wrong")
    )  # fmt: skip
    return f'<b class="{name}">{words} <span role="img" aria-label="{spoken}">{mark}</span></b>'


def _tokens(reading: Reading) -> str:
    return f"{sum(reading.prediction.kept)} of {sum(reading.prediction.full)}"


def _share(value: float, whole: float, show: object) -> str:
    assert callable(show)
    return f"{show(value)} ({100 * value / whole:.0f}%)"


def _picture_class(picture: Picture) -> str:
    return "sm-p" + hashlib.sha256(picture.key.encode()).hexdigest()[:12]


def _block(picture: Picture, view: View, inner: str) -> str:
    """A block with the rule that holds its picture."""
    uri = overlays.photo_uri(view.image, longest_px=LONGEST_PX)
    rule = f'.{_picture_class(picture)}{{background-image:url("{uri}")}}'
    return f'<div class="sm-block"><style>{rule}</style>{inner}</div>'


def _frame(
    view: View,
    overlay: str,
    picture: Picture | None,
    *,
    caption: str,
    label: str,
    grey: bool = False,
    extra: str = "",
) -> str:
    """A picture with an overlay and an SVG on top; without a picture the overlay alone."""
    width, height = view.image.size
    under = "bare" if picture is None else _picture_class(picture) + (" grey" if grey else "")
    layer = f'<img alt="" src="{overlay}">' if overlay else ""
    return (
        f'<figure><div class="sm-frame {under}" role="img" aria-label="{text(label)}" '
        f'style="aspect-ratio:{width}/{height}">{layer}{extra}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _kept_frame(reading: Reading, picture: Picture, *, name: str = "") -> str:
    view = reading.view
    title = f"<b>{text(name or reading.title)}</b>"
    if view.replaced:
        merged = f"{title}: {view.kept} tokens made anew, no cell chosen"
        return _frame(view, "", picture, caption=merged, label=f"{reading.title}: nothing dropped.")
    count = int(view.keep_HW.sum())
    caption = f"{title}: {count} of {view.full} cells"
    if view.kept > count:
        caption += f", and {view.kept - count} coarse tokens"
    outline = ""
    if view.answer_cells:
        rows, columns = view.keep_HW.shape
        edges = overlays.outline(view.answer_cells, grid=(rows, columns))
        path = "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in edges)
        outline = _svg(view, f'<path class="under" d="{path}"/><path d="{path}"/>')
        caption += f"; {view.answer_cells_kept} of {len(view.answer_cells)} answer cells"
    overlay = overlays.png_uri(overlays.dropped(view.keep_HW))
    label = f"{reading.title}: {count} of {view.full} cells are kept, the others are dark."
    return _frame(view, overlay, picture, caption=caption, label=label, extra=outline)


def _score_frame(view: View, name: str, picture: Picture) -> str:
    meaning = SCORE_MEANINGS[name]
    row, column = np.unravel_index(int(view.maps[name].argmax()), view.maps[name].shape)
    return _frame(
        view, overlays.png_uri(overlays.heat(view.maps[name])), picture, grey=True,
        caption=f"<b>{text(name)}</b>: {text(meaning)}",
        label=f"Heat map of {name} ({meaning}); highest in row {row + 1}, column {column + 1}.",
    )  # fmt: skip


def _signs(first: View, second: View) -> str:
    strokes = []
    for sign, cells in signs(first, second).items():
        for row, column in cells:
            x, y = column + 0.5, row + 0.5
            strokes.append(f"M{x - 0.25} {y}h.5")
            if sign == "+":
                strokes.append(f"M{x} {y - 0.25}v.5")
    return _svg(first, f'<path class="signs" d="{"".join(strokes)}"/>')


def _svg(view: View, inner: str) -> str:
    rows, columns = view.keep_HW.shape
    return (
        f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" aria-hidden="true">'
        f"{inner}</svg>"
    )


def _ramp(low: str, high: str, *, kind: str = "heat") -> str:
    return (
        f'<div class="sm-ramp"><span>{text(low)}</span><i class="{kind}"></i>'
        f"<span>{text(high)}</span></div>"
    )


def _dials(view: View) -> str:
    """Mean weights as one bar, and each tension between its poles."""
    total = sum(view.weights.values()) or 1.0
    bars = "".join(
        f'<i class="{name}" style="width:{100 * value / total:.1f}%"></i>'
        for name, value in view.weights.items()
    )
    names = "".join(
        f'<span><i class="{name}"></i>{name} {value:.2f}</span>'
        for name, value in view.weights.items()
    )
    dials = "".join(_dial(name, value) for name, value in view.tensions.items())
    return (
        f'<div class="sm-dials"><div><h3>Mean weights</h3><div class="sm-mix" aria-hidden="true">'
        f'{bars}</div><div class="sm-legend mix">{names}</div></div>'
        f"<div><h3>Tensions</h3>{dials}</div></div>"
    )


def _dial(name: str, value: float) -> str:
    low, high = POLES.get(name, ("low", name))
    place = 100 * max(0.0, min(1.0, value))
    spoken = f"{value:.2f} from {text(low)} to {text(high)}"
    return (
        f'<div class="sm-dial" role="img" aria-label="{spoken}">'
        f'<span>{text(low)}</span><span class="track"><i style="left:{place:.0f}%"></i></span>'
        f"<span>{text(high)} {value:.2f}</span></div>"
    )


def _quartile_table(found: Quality | None) -> str:
    if found is None or not found.quartiles:
        return ""
    names = ("least", "25%", "median", "75%", "greatest")
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th>'
        + "".join(f"<td>{value:.2f}</td>" for value in values)
        + "</tr>"
        for name, values in found.quartiles.items()
    )
    return (
        '<h3>Score quartiles</h3><div class="sm-scroll"><table><thead><tr><td></td>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _decay(found: Quality | None) -> str:
    if found is None or not found.decay:
        return ""
    lines = "".join(_curve(name, values) for name, values in found.decay.items())
    at = 40 + 300 * found.kept / found.cells
    ticks = "".join(
        f'<text x="{40 + 3 * share}" y="176" text-anchor="middle">{share}%</text>'
        for share in (0, 25, 50, 75, 100)
    )
    names = "".join(
        f'<span><svg viewBox="0 0 34 8" width="34" height="8" aria-hidden="true"><path '
        f'class="{name}" stroke-dasharray="{DASHES[name]}" d="M0 4H34"/></svg>{name}</span>'
        for name in found.decay
    )
    return (
        "<h3>How fast the scores fall from the best cell to the last</h3>"
        '<div class="sm-curve"><svg viewBox="0 0 360 200" role="img" '
        f'aria-label="{_spoken(found)}">'
        '<path class="axis" d="M40 10V160H340"/>'
        f'<path class="budget" d="M{at:.1f} 10V160"/>'
        f'<text x="{at + 4:.1f}" y="20">kept</text>{lines}{ticks}'
        '<text x="34" y="16" text-anchor="end">best</text>'
        '<text x="34" y="163" text-anchor="end">least</text>'
        '<text x="190" y="194" text-anchor="middle">cells, from the highest score down</text></svg>'
        f'<div class="sm-legend">{names}</div></div>'
    )


def _curve(name: str, values: Sequence[float]) -> str:
    step = 300 / (len(values) - 1)
    points = " ".join(f"{40 + step * k:.1f},{160 - 150 * v:.1f}" for k, v in enumerate(values))
    return f'<polyline class="{name}" stroke-dasharray="{DASHES[name]}" points="{points}"/>'


def _spoken(found: Quality) -> str:
    at = round(found.kept / found.cells * (len(next(iter(found.decay.values()))) - 1))
    parts = [f"{name} {values[at]:.2f}" for name, values in found.decay.items()]
    return text("Scores at the last kept cell, from 1 at the best to 0: " + ", ".join(parts))


def run_facts(pairs: Mapping[str, object]) -> str:
    """One line of facts about the run under the title."""
    items = "".join(
        f"<span>{text(name)} <b>{text(value)}</b></span>" for name, value in pairs.items()
    )
    return f'<header class="sm-head"><h1>Saccade microscope</h1><p>{items}</p></header>'
