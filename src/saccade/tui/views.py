"""What each screen says, as plain values: the same for the terminal and for `--json`.

The values of sources (board, doctor, cloud, prices) flow in, mappings flow out that JSON can hold.
Nothing is read here and nothing is drawn. Left out: reading (`sources.py`), cells (`words.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saccade.launch.messages import money, span
from saccade.tui.board import LOW_DISK_BYTES

Values = Mapping[str, Any]
BAD = ("FAILED", "INCOMPLETE", "BROKEN", "UNREADABLE", "GONE")
LEVELS = {"fail": "block", "note": "warn", "ok": "ok"}
"""What `doctor` calls a level -> what the cloud's findings call it."""
WORST_FIRST = ("block", "warn", "unknown", "ok")
"""Levels of a finding, in the order in which a person should see them."""
HOME_RUNS = 12


def home(
    board: Values | None, doctor: Sequence[Values] | None, cloud: Values | None,
    prices: Values | None, *, now: float,
) -> dict[str, Any]:  # fmt: skip
    """Everything at a glance, and the next sensible step."""
    rows = list((board or {}).get("rows", ()))
    sums = totals(rows)
    return {
        "next": next_step(board, doctor, cloud),
        "glance": [
            _runs_line(sums), _money_line(rows, sums), _watch_line(rows, sums), _disk_line(board),
            _machine_line(doctor), *_cloud_lines(cloud), _price_line(prices),
        ],
        "runs": rows[:HOME_RUNS],
        "read_at": (board or {}).get("read_at", now),
    }  # fmt: skip


def totals(rows: Sequence[Values]) -> dict[str, Any]:
    """Counts by state, and money over all launches."""
    states: dict[str, int] = {}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
    spent = [row["usd"] for row in rows if row.get("usd")]
    held = [row for row in rows if row["state"] in ("RUNNING", "STARTING")]
    rate = [row["usd_per_hour"] for row in held if row.get("usd_per_hour")]
    lonely = [row for row in rows if _lonely(row)]
    return {
        "states": states, "usd": sum(spent), "usd_per_hour": sum(rate),
        "nobody_watches": [row["launch"] for row in lonely],
        "active": sum(not row["over"] for row in rows),
    }  # fmt: skip


def _lonely(row: Values) -> bool:
    return bool(row.get("launch")) and not row["over"] and row["watched_by"] is None


def next_step(
    board: Values | None, doctor: Sequence[Values] | None, cloud: Values | None
) -> dict[str, str]:  # fmt: skip
    """The one thing to do now, and the key that leads there."""
    if board is None:
        return _step("", "reading the runs ...")
    if board["problem"]:
        return _step("e", board["problem"])
    if board["free_bytes"] is not None and board["free_bytes"] < LOW_DISK_BYTES:
        return _step("", f"the disk of {board['root']} is full: free some space first")
    rows = board["rows"]
    lonely = next((row for row in rows if _lonely(row)), None)
    if lonely is not None:
        return _step("1", f"nobody watches over {lonely['run']}: open it and press w")
    sick = next((one for one in doctor or () if one["status"] == "fail"), None)
    if sick is not None:
        return _step("3", f"this machine needs a hand: {sick['name']}: {sick['found']}")
    if any(not row["over"] for row in rows):
        return _step("1", "something is running: watch it")
    away = next((row for row in rows if row.get("fetch")), None)
    if away is not None:
        return _step("1", f"{away['run']} is done elsewhere: h brings it home")
    bad = next((row for row in rows if row["state"] in BAD), None)
    if bad is not None:
        return _step("1", f"{bad['run']} is {bad['state'].lower()}: look why")
    if not rows:
        if doctor is None and cloud is None:
            return _step("3", "check this machine, then train something")
        missing = sum(one["level"] == "block" for one in (cloud or {}).get("findings", ()))
        if missing:
            return _step("3", f"{(cloud or {})['project']} lacks {missing} thing(s): set it up")
        return _step("2", "train something: `relevance` takes minutes on this machine")
    stopped = next((row for row in rows if row["state"] in ("STOPPED", "PREEMPTED")), None)
    if stopped is not None:
        return _step("1", f"{stopped['run']} is not finished: r continues it")
    bare = next((row for row in rows if row["state"] == "DONE" and not row["report"]), None)
    if bare is not None:
        return _step("6", f"{bare['run']} is done: b writes its report")
    return _step("2", "all is done here: train something new")


def checks(doctor: Sequence[Values] | None, cloud: Values | None) -> list[dict[str, Any]]:
    """What was checked on this machine and in the cloud, worst first within each."""
    rows = [
        {"where": "here", "level": LEVELS[one["status"]], "name": one["name"],
         "message": one["found"], "fix": one["fix"]}
        for one in doctor or ()
    ]  # fmt: skip
    for one in (cloud or {}).get("findings", ()):
        rows.append(
            {"where": "cloud", "level": one["level"], "name": one["name"],
             "message": one["message"], "fix": one["fix"], "have": one.get("have"),
             "need": one.get("need")}
        )  # fmt: skip
    return rows


def _step(key: str, text: str) -> dict[str, str]:
    return {"key": key, "text": text}


def _line(what: str, level: str, found: str, fix: str = "") -> dict[str, str]:
    return {"what": what, "level": level, "found": found, "fix": fix}


def _runs_line(sums: Values) -> dict[str, str]:
    states = sums["states"]
    text = ", ".join(f"{count} {state.lower().replace('_', ' ')}" for state, count in
                     sorted(states.items(), key=lambda one: -one[1]))  # fmt: skip
    level = "warn" if any(states.get(one) for one in BAD) else "ok"
    return _line("runs", level, text or "none yet", "1 shows them")


def _money_line(rows: Sequence[Values], sums: Values) -> dict[str, str]:
    paid = [row for row in rows if row.get("launch") and row.get("target") != "local"]
    if not paid:
        return _line("cost", "ok", "nothing is rented")
    text = f"{money(sums['usd'])} over {len(paid)} launch(es)"
    text += f", {money(sums['usd_per_hour'])}/h now" if sums["usd_per_hour"] else ", $0/h now"
    return _line("cost", "ok", text)


def _watch_line(rows: Sequence[Values], sums: Values) -> dict[str, str]:
    lonely = sums["nobody_watches"]
    going = [row for row in rows if row.get("launch") and not row["over"]]
    if not going:
        return _line("watching", "ok", "nothing to watch over")
    if lonely:
        return _line("watching", "warn", f"nobody: {', '.join(lonely[:3])}", "w in the monitor")
    return _line("watching", "ok", f"{len(going)} launch(es), all watched")


def _disk_line(board: Values | None) -> dict[str, str]:
    free = (board or {}).get("free_bytes")
    if board is None or free is None:
        return _line("disk", "unknown", "not read yet")
    low = free < LOW_DISK_BYTES
    fix = "free some space, or OUTPUT_DIR in .training" if low else ""
    said = f"{free / 2**30:.1f} GB free at {board['root']}/"
    return _line("disk", "block" if low else "ok", said, fix)


def _machine_line(doctor: Sequence[Values] | None) -> dict[str, str]:
    if doctor is None:
        return _line("machine", "unknown", "not checked yet", "3 checks it")
    bad = [one for one in doctor if one["status"] == "fail"]
    if bad:
        return _line("machine", "block", f"{bad[0]['name']}: {bad[0]['found']}", bad[0]["fix"])
    notes = sum(one["status"] == "note" for one in doctor)
    return _line("machine", "ok", f"{len(doctor)} checks" + (f", {notes} notes" if notes else ""))


def _cloud_lines(cloud: Values | None) -> list[dict[str, str]]:
    if cloud is None:
        return [_line("cloud", "unknown", "not asked yet", "3 asks")]
    if not cloud.get("project"):
        return [_line("cloud", "ok", "no project: everything runs here", "f in 3: a fake cloud")]
    name = f"{cloud['project']} ({'fake' if cloud['fake'] else cloud['region']})"
    found = cloud["findings"]
    lines = []
    for what, match in (("credentials", "credentials"), ("quota", "quota")):
        these = [one for one in found if one["name"].startswith(match)]
        worst = _worst(these)
        if worst is not None:
            lines.append(_line(what, worst["level"], worst["message"], worst["fix"]))
    blocked = [one for one in found if one["level"] == "block"]
    text = f"{name}: " + (f"{len(blocked)} thing(s) missing" if blocked else "all is there")
    first = blocked[0]["fix"] if blocked else ""
    return [_line("project", "block" if blocked else "ok", text, first), *lines]


def _worst(found: Sequence[Values]) -> Values | None:
    return min(found, key=lambda one: WORST_FIRST.index(one["level"]), default=None)


def _price_line(prices: Values | None) -> dict[str, str]:
    if prices is None:
        return _line("prices", "unknown", "not read yet", "2 reads them")
    days = prices["age_days"]
    level, fix = ("warn", "saccade prices refresh") if days > 30 else ("ok", "")
    return _line("prices", level, f"{prices['source']}, {span(days * 86400)} old", fix)
