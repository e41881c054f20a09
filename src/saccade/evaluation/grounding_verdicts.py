"""What a comparison of ways to look shows, against the bars it was meant to reach.

In go the rows and rates of a comparison; out comes one verdict per bar: what was measured with its
95 % interval, what was asked, and how it stands: `clear` (the whole interval passes), `met` (the
measured value passes, its interval does not), `missed`, or `unknown` where nothing was measured or
too few screenshots were. Gates that could not be had (`grounding_arms.py`) have no bar.
Left out: wording for people (`grounding_table.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from saccade.evaluation.statistics import LEAST_GROUPS

Row = Mapping[str, Any]
Standing = Literal["clear", "met", "missed", "unknown"]

GAIN = 0.10
"""Over never looking again, in accuracy."""
SHORTFALL = -0.03
"""Against always looking again, in accuracy: at most so much less."""
PIXEL_SHARE = 0.6
"""Of what always looking again costs, at most."""
ORDERS: dict[str, Standing] = {"falls": "met", "flat": "missed", "rises": "missed",
                               "unknown": "unknown"}  # fmt: skip


def verdicts(
    rows: Mapping[str, Row], *, order: Row, calibration: Mapping[str, Row]
) -> list[dict[str, Any]]:
    """One verdict per bar; `rows` by name of the arm."""
    never, always = rows["never"], rows["always"]
    found = [
        _over("better than never looking again", never["difference"], bar=GAIN),
        _over("the same on small targets", never["difference_small"], bar=GAIN),
        _over("against always looking again", always["difference"], bar=SHORTFALL),
        _cheaper(rows["learned"]["pixels"] / max(1e-9, always["pixels"])),
    ]
    found += [
        _over(f"better than the {name} gate at equal pixels", rows[arm]["difference"], bar=0.0)
        for name, arm in (
            ("dispersion", "dispersion_equal"), ("confidence", "confidence_equal"),
            ("predicted-size", "size_equal"), ("random", "random"),
        )
        if arm in rows
    ]  # fmt: skip
    found.append(
        _verdict("looks get rarer as targets get larger", None, standing=ORDERS[order["order"]])
        | {"detail": _order_text(order)}
    )
    return [*found, *_calibrated(calibration)]


def _order_text(order: Row) -> str:
    pairs = ", ".join(f"{large} above {small}" for small, large in order["against"])
    return order["order"] + (f" ({pairs})" if pairs else "")


def _over(name: str, difference: Row, *, bar: float) -> dict[str, Any]:
    if not difference["samples"]:
        return _verdict(name, None, bar=bar, standing="unknown", sign=">=")
    low, mean = difference["low"], difference["mean"]
    # at a bar of nothing, being equal is not being better
    strict = bar == 0.0
    passes = mean > bar if strict else mean >= bar
    surely = low > bar if strict else low >= bar
    standing: Standing = "clear" if surely else "met" if passes else "missed"
    if difference["groups"] < LEAST_GROUPS:
        standing = "unknown"
    found = _verdict(name, mean, bar=bar, standing=standing, sign=">" if strict else ">=")
    return {**found, "low": low, "high": difference["high"]}


def _cheaper(share: float) -> dict[str, Any]:
    standing: Standing = "met" if share <= PIXEL_SHARE else "missed"
    name = "share of the pixels of always looking"
    return _verdict(name, share, bar=PIXEL_SHARE, standing=standing, unit="share", sign="<=")


def _calibrated(calibration: Mapping[str, Row]) -> list[dict[str, Any]]:
    found = []
    for kind in ("temperature", "isotonic"):
        for measure, title in (("brier", "Brier"), ("ece", "ECE")):
            change = calibration[kind][measure] - calibration["raw"][measure]
            name = f"{title} after calibration ({kind}) minus before"
            standing: Standing = "met" if change < 0 else "missed"
            found.append(_verdict(name, change, bar=0.0, standing=standing, unit="loss", sign="<"))
    return found


def _verdict(
    name: str, value: float | None, *, standing: Standing, bar: float | None = None,
    unit: Literal["points", "share", "loss"] = "points", sign: str = "",
) -> dict[str, Any]:  # fmt: skip
    return {"name": name, "value": value, "low": None, "high": None, "bar": bar, "unit": unit,
            "sign": sign, "standing": standing, "detail": ""}  # fmt: skip
