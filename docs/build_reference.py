"""Write docs/reference from the code: keys, commands, flat names, JSON schema.

The schema, the command line and the table of flat names flow in; Markdown and JSON files flow out.
`make docs` runs it; a test compares its output with what is committed. Nothing here is written by
hand, so nothing here can be out of date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.main import get_command

from saccade.cli import app
from saccade.config.keys import Key, all_keys, sections
from saccade.config.layers import GROUPS, group_options, packaged_recipes
from saccade.config.schema import Config
from saccade.config.secrets import secret_table
from saccade.config.training_file import ENVIRONMENT_PREFIX, FLAT_NAMES, OTHER_VARIABLES

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/build_reference.py; change the code and run `make docs`. -->\n"


def main() -> None:
    """Write every page."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
        print(f"wrote {REFERENCE / name}")


def pages() -> dict[str, str]:
    """Return {file name: content} of the whole reference."""
    return {
        "config-keys.md": _keys_page(),
        "cli.md": _cli_page(),
        "training-file.md": _training_page(),
        "config.schema.json": json.dumps(Config.model_json_schema(), indent=2) + "\n",
    }


def _keys_page() -> str:
    lines = [
        "# Configuration keys\n",
        NOTE,
        "Every key can stand in a YAML file or on the command line (`training.steps=100`). The",
        "defaults are those of the package; recipes change some of them (`saccade config show`",
        "prints what a run would have and where each value comes from).\n",
        f"Recipes: {_names(packaged_recipes())}.\n",
    ]
    for group in GROUPS:
        lines.append(f"Ready-made `{group}=...`: {_names(group_options(group))}.\n")
    lines += ["## recipe\n", *_key_table([key for key in all_keys() if not key.section])]
    for section, meaning in sections().items():
        keys = [key for key in all_keys() if key.section == section]
        if not keys:
            continue
        lines += [f"## {section}\n"] + ([meaning + "\n"] if meaning else [])
        tags = list(dict.fromkeys(key.branch for key in keys))
        for tag in tags:
            if tag:
                lines.append(f"### {section}.type = {tag}\n")
            lines += _key_table([key for key in keys if key.branch == tag])
    return "\n".join(lines) + "\n"


def _key_table(keys: list[Key]) -> list[str]:
    rows = [
        [f"`{key.name}`", _cell(key.type), f"`{_cell(key.default)}`", _cell(key.sentence)]
        for key in keys
    ]
    return _table(["key", "type", "default", "meaning"], rows)


def _cli_page() -> str:
    lines = [
        "# Commands\n",
        NOTE,
        "Exit codes: 0 done; 2 your input; 3 something missing outside (a device, a package, disk",
        "space, credentials); 143 stopped and resumable; 130 interrupted; 1 a bug. Results go to",
        "stdout, progress and messages to stderr. `NO_COLOR=1` switches colour off.\n",
    ]
    return "\n".join([*lines, *_commands(get_command(app), path="saccade")]) + "\n"


def _commands(command: Any, *, path: str) -> list[str]:
    if hasattr(command, "commands"):
        lines: list[str] = []
        for name, inner in command.commands.items():
            lines += _commands(inner, path=f"{path} {name}")
        return lines
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([path, *(_argument(p) for p in arguments), "[OPTIONS]" if options else ""])
    lines = [f"## {path}\n", f"```\n{usage.strip()}\n```\n", _dedent(command.help), ""]
    rows = [[f"`{_argument(p)}`", _cell(p.help)] for p in arguments]
    rows += [[f"`{', '.join(p.opts)}`", _cell(p.help)] for p in options]
    return lines + (_table(["argument or option", "meaning"], rows) if rows else [])


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    many = "..." if parameter.nargs == -1 else ""
    return f"{name}{many}" if parameter.required else f"[{name}]{many}"


def _training_page() -> str:
    keys = {key.name: key for key in all_keys()}
    rows = [
        [f"`{flat}`", f"`{dotted}`", _cell(keys[dotted].type), _cell(keys[dotted].sentence)]
        for flat, dotted in FLAT_NAMES.items()
    ]
    others = [[f"`{name}`", _cell(meaning)] for name, meaning in OTHER_VARIABLES.items()]
    secrets = [
        [f"`{name}`", "secret" if secret else "", _cell(meaning)]
        for name, secret, meaning in secret_table()
    ]
    return "\n".join(
        [
            "# Flat names: `.training`, the environment, `.env`\n",
            NOTE,
            "## `.training`\n",
            "A file `.training` in the folder where you call `saccade` holds `NAME=value` lines:",
            "quotes, comments and a leading `export` are understood, nothing is evaluated by a",
            "shell. It wins over recipes and YAML files. An empty value counts as not given; an",
            "unknown name is an error.\n",
            *_table(["name", "key", "type", "meaning"], rows),
            "## Environment\n",
            f"The same names behind `{ENVIRONMENT_PREFIX}` (`{ENVIRONMENT_PREFIX}LEARNING_RATE`)",
            "win over `.training`; the command line wins over both. An unknown name with this",
            "prefix is an error, except:\n",
            *_table(["variable", "meaning"], others),
            "## `.env`\n",
            "Secrets and infrastructure, read from `.env` in the same folder; a variable of the",
            "environment wins over its line. Secrets are masked wherever they are shown and are",
            "never written to a run directory. An unknown name is an error.\n",
            *_table(["name", "", "meaning"], secrets),
        ]
    )


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*head, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _dedent(text: str | None) -> str:
    return "\n".join(line.strip() for line in (text or "").strip().splitlines())


if __name__ == "__main__":
    main()
