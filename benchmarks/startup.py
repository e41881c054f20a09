"""How long commands take to start: wall time of real processes, and what they load.

Nothing flows in; a table flows out: best and median of several cold processes per command, whether
torch was loaded, and the bar of 0.6 s for help. Timings depend on the machine, so this is a
benchmark and not a test; what is loaded is also checked by tests/terminal.

    python benchmarks/startup.py [REPETITIONS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS: list[tuple[str, ...]] = [
    ("--help",),
    ("--version",),
    ("train", "--help"),
    ("config", "keys"),
    ("config", "show"),
    ("train", "--dry-run"),
]
HELP_BAR_SECONDS = 0.6
PROBE = """
import sys
sys.argv = ["saccade", *sys.argv[1:]]
from saccade.cli import main
try:
    main()
except SystemExit:
    print("torch" in sys.modules, file=sys.stderr)
"""


def main() -> None:
    """Measure every command and print the table."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    bare = seconds([sys.executable, "-c", "pass"], repetitions=repetitions)
    print(f"bare interpreter: best {min(bare):.3f} s; {repetitions} cold processes per command\n")
    print(f"{'command':28} {'best s':>8} {'median s':>9}  {'torch loaded':13} help bar")
    for words in COMMANDS:
        taken = seconds([sys.executable, "-m", "saccade.cli", *words], repetitions=repetitions)
        bar = ""
        if "--help" in words:
            bar = "met" if statistics.median(taken) < HELP_BAR_SECONDS else "MISSED"
        print(
            f"{'saccade ' + ' '.join(words):28} {min(taken):8.3f} {statistics.median(taken):9.3f}"
            f"  {loads_torch(words)!s:13} {bar}"
        )


def seconds(command: list[str], *, repetitions: int) -> list[float]:
    """Time a command in fresh processes, after one run that warms the file cache."""
    taken = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        taken.append(time.perf_counter() - start)
    return taken[1:]


def loads_torch(words: tuple[str, ...]) -> bool:
    """Tell whether a command leaves torch in sys.modules."""
    command = [sys.executable, "-c", PROBE, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stderr.split()[-1] == "True"


if __name__ == "__main__":
    main()
