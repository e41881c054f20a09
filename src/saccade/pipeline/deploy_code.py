"""What a demo needs of saccade itself: the modules that run a model, and the pinned packages.

Names of modules flow in; out come the files they need (found by reading their imports, so nothing
is guessed and nothing is left over) and the lines of a `requirements.txt` whose versions are those
of `constraints.txt`. A Space installs its requirements before its own files are there, so a wheel
in the folder could not be installed; files beside `app.py` always can be imported. Left out:
assets, the command line, training.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from saccade.config.errors import OutsideError

PACKAGE = "saccade"
NEEDED_BY_LOADING = ("accelerate", "hf-xet", "huggingface-hub", "tokenizers")
"""Installed by transformers' own requirements; pinned, because their versions change results."""
NEEDED_BY_PAGE = ("gradio",)
PROJECT_OF = {"PIL": "pillow", "yaml": "pyyaml"}
"""Where a package is imported under another name than it is installed by."""


@dataclass(frozen=True)
class Code:
    """Modules by their path below the package's parent, and the packages they import."""

    files: Mapping[str, bytes]
    imports: tuple[str, ...]


def needed_code(entry: Path) -> Code:
    """Everything of this package that the program `entry` imports, directly or not."""
    root = Path(__file__).resolve().parents[1]
    files: dict[str, bytes] = {}
    outside: set[str] = set()
    todo = [_imports(entry.read_bytes())]
    while todo:
        for name in todo.pop():
            if name.partition(".")[0] != PACKAGE:
                outside.add(name.partition(".")[0])
                continue
            for module in _with_parents(name):
                path = _file_of(module, root=root)
                key = "" if path is None else f"{PACKAGE}/{path.relative_to(root).as_posix()}"
                if path is not None and key not in files:
                    files[key] = path.read_bytes()
                    todo.append(_imports(files[key]))
    third = sorted(outside - set(sys.stdlib_module_names))
    return Code(files=dict(sorted(files.items())), imports=tuple(third))


def requirements(imports: Iterable[str], *, pins: str) -> str:
    """The text of `requirements.txt`: what is imported, at the versions of `pins`."""
    known = dict(
        line.split("==", 1) for line in pins.splitlines() if "==" in line and line[:1] != "#"
    )
    names = {PROJECT_OF.get(one, one).replace("_", "-").lower() for one in imports}
    wanted = sorted(names | {*NEEDED_BY_LOADING, *NEEDED_BY_PAGE})
    missing = [one for one in wanted if one not in known]
    if missing:
        raise OutsideError(
            f"constraints.txt names no version of {', '.join(missing)}"
            "\n  fix: add the version that is installed"
        )
    lines = [
        "# The versions this model was tested with. Where there is no GPU, the CPU build of torch",
        "# saves gigabytes: pip install -r requirements.txt --extra-index-url"
        " https://download.pytorch.org/whl/cpu",
        *(f"{one}=={known[one].strip()}" for one in wanted),
    ]
    return "\n".join(lines) + "\n"


def pinned_version(name: str, *, requirements: str) -> str:
    """The version of one package in a requirements text."""
    return next(
        line.partition("==")[2] for line in requirements.splitlines() if line.startswith(f"{name}=")
    )


def _imports(source: bytes) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # what is imported from a package may be a module of it
            names += [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
    return names


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _file_of(module: str, *, root: Path) -> Path | None:
    place = root.joinpath(*module.split(".")[1:])
    for path in (place / "__init__.py", place.with_suffix(".py")):
        if path.is_file():
            return path
    return None
