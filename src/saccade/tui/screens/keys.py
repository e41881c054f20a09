"""The list of keys, made from the bindings that are active: rows for the box that `?` opens.

A screen flows in, rows flow out. Left out: keys that a text field takes for itself.
"""

from __future__ import annotations

from textual.screen import Screen

from saccade.tui.widgets.grid import Row


def key_rows(screen: Screen) -> list[Row]:
    """Every active binding: key, what it does, where it belongs."""
    rows: dict[str, Row] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        what = binding.tooltip or binding.description
        if not what or binding.system:
            continue
        name = f"{binding.action}{binding.description}"
        shown = binding.key_display or screen.app.get_key_display(binding)
        where = "here" if active.node is screen else type(active.node).__name__.lower()
        where = "anywhere" if active.node is screen.app else where
        if name in rows:
            known = rows[name][1]["key"][0]
            rows[name][1]["key"] = (f"{known} {shown}", "strong")  # type: ignore[index]
            continue
        rows[name] = (
            name,
            {"key": (shown, "strong"), "what": (what, "plain"), "where": (where, "dim")},
        )
    order = {"here": 0, "anywhere": 1}
    return sorted(rows.values(), key=lambda row: order.get(row[1]["where"][0], 2))
