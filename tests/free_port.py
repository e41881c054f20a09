"""A port for a process that cannot choose one itself and tell."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOWEST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
DRAW = random.SystemRandom()
"""Not the seeded one: tests side by side must not all draw the same."""


def free_port() -> int:
    """A port that nobody uses, and that the system gives to nobody who asks for any.

    Ports of `bind(0)` and of outgoing connections come from a range of their own; one from there
    may be taken again before the process that it is meant for gets to it.
    """
    try:
        first = int(RANGE.read_text().split()[0])
    except (OSError, ValueError):
        first = 0
    for _ in range(100):
        port = DRAW.randrange(LOWEST, first) if first > LOWEST else 0
        with socket.socket() as taken:
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(taken.getsockname()[1])
    raise AssertionError("no port is free")
