"""The list of keys, made from the bindings that are active: rows for the box that `?` opens.

A screen flows in, rows flow out. Left out: keys that a text field takes for itself.
"""

from __future__ import annotations

from textual.screen import Screen

from saccade.tui.widgets.grid import Row


def key_rows(screen: Screen) -> list[Row]:
    """Every active binding: key, what it does, where it belongs."""
    found: dict[str, tuple[str, str, str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        what = binding.tooltip or binding.description
        if not what or binding.system:
            continue
        name = f"{binding.action}{binding.description}"
        shown = binding.key_display or screen.app.get_key_display(binding)
        where = "here" if active.node is screen else type(active.node).__name__.lower()
        where = "anywhere" if active.node is screen.app else where
        before = f"{found[name][0]} " if name in found else ""
        found[name] = (before + shown, what, where)
    order = {"here": 0, "anywhere": 1}
    return [
        (name, {"key": (key, "strong"), "what": (what, "plain"), "where": (where, "dim")})
        for name, (key, what, where) in sorted(
            found.items(), key=lambda one: order.get(one[1][2], 2)
        )
    ]
