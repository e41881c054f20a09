"""`python -m saccade.cloud.fake`: the server that runs in the background (`background.py`)."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from saccade.cloud.fake.foreground import run
from saccade.config.errors import SaccadeError


def main() -> int:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="python -m saccade.cloud.fake")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--scenario", type=Path)
    parser.add_argument("--idle", type=float)
    words = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        run(
            words.state,
            port=words.port,
            scenario=words.scenario,
            idle=words.idle,
            announce=lambda cloud: None,
        )
    except SaccadeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
