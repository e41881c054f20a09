"""Money: what a launch has cost so far, what is lost at a preemption, what it may come to.

A `LaunchView` and the present time flow in, US dollars flow out. Only the times in which a machine
was held are counted, each at the price of the attempt it belongs to: queued and waiting jobs cost
nothing. None means that a price is not known, which is never counted as zero. Left out: prices
(`prices.py`) and estimates before the launch (`estimate.py`).
"""

from __future__ import annotations

from saccade.launch.view import LaunchView

HOUR_S = 3600.0


def held_s(view: LaunchView, *, now: float, attempt: int | None = None) -> float:
    """Seconds a machine was held, in all attempts or in one."""
    return sum(
        max(0.0, (one.ended_at or max(now, one.started_at)) - one.started_at)
        for one in view.held
        if attempt is None or one.attempt == attempt
    )


def cost(view: LaunchView, *, now: float, attempt: int | None = None) -> float | None:
    """Dollars so far, of all attempts or of one; None when a price is not known."""
    total = 0.0
    for one in view.held:
        if attempt is not None and one.attempt != attempt:
            continue
        if one.usd_per_hour is None:
            return None
        seconds = max(0.0, (one.ended_at or max(now, one.started_at)) - one.started_at)
        total += seconds / HOUR_S * one.usd_per_hour
    return total


def lost(view: LaunchView, *, step: int, checkpoint: int) -> tuple[int, float | None]:
    """Steps that must be done again, and about what they cost."""
    steps = max(0, step - checkpoint)
    rate = view.steps_per_s
    price = view.here.usd_per_hour if view.here else None
    if not rate or price is None:
        return steps, None
    return steps, steps / rate / HOUR_S * price


def remaining_s(view: LaunchView, *, now: float) -> float | None:
    """Seconds until the last step at the present rate; None without one."""
    rate, beat = view.steps_per_s, view.beat
    if not rate or beat is None or beat.steps is None or view.over:
        return None
    since = max(0.0, now - beat.at)
    return max(0.0, (beat.steps - beat.step) / rate - since)


def projected(view: LaunchView, *, now: float) -> float | None:
    """Dollars at the end if nothing else happens; None while rate or price is not known."""
    so_far, left = cost(view, now=now), remaining_s(view, now=now)
    price = view.here.usd_per_hour if view.here else None
    if so_far is None or left is None or price is None:
        return None
    return so_far + left / HOUR_S * price


def attempts(view: LaunchView, *, now: float) -> list[dict[str, float | int | None]]:
    """Per attempt: seconds held, price and dollars."""
    rows: list[dict[str, float | int | None]] = []
    for number in sorted({one.attempt for one in view.held}):
        prices = [one.usd_per_hour for one in view.held if one.attempt == number]
        dollars = cost(view, now=now, attempt=number)
        rows.append(
            {
                "attempt": number,
                "held_s": round(held_s(view, now=now, attempt=number), 1),
                "usd_per_hour": prices[-1],
                "usd": None if dollars is None else round(dollars, 4),
            }
        )
    return rows
