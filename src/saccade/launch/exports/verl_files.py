"""The texts of an exported verl experiment: tools, reward, check, launch script, README.

verl's options and the notes flow in, file names with their texts flow out. The Python files are
thin: what they call is `saccade.grounding.verl_tool` and `verl_check`, so that a newer saccade
mends an older experiment. Left out: rows and what the options are (`verl.py`).
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from saccade.config.schema import Config
from saccade.grounding.messages import tool_schemas
from saccade.grounding.verl_check import LEAST_AGREEMENT, MOST_DIFFERENCE

PYTHON = ">=3.11,<3.13"
NEEDS = "pydantic annotated-types pillow pyyaml pyarrow"
"""What the called part of saccade imports; its torch and transformers are not verl's."""


def files_of(
    config: Config,
    *,
    arguments: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    version: str,
    rows: int,
) -> dict[str, str]:
    """Name -> text of every file that is not data."""
    tools = [
        name for name in config.grounding.tools if name != "zoom" or config.grounding.zoom.calls
    ]
    longest = int(arguments["rows"]["data.max_prompt_length"])
    return {
        "tools.yaml": tools_yaml(tools),
        "saccade_tool.py": tool_file(version),
        "saccade_reward.py": reward_file(),
        "saccade_check.py": check_file(longest),
        "run.sh": script(config, arguments=arguments, version=version),
        "README.md": readme(config, notes=notes, version=version, rows=rows),
    }


def tools_yaml(tools: Sequence[str]) -> str:
    """verl's tool configuration: the same class, once per tool."""
    made = [
        {
            "class_name": "saccade_tool.GroundingTool",
            "config": {"type": "native"},
            "tool_schema": schema,
        }
        for schema in tool_schemas(tools)
    ]
    return yaml.safe_dump({"tools": made}, sort_keys=False, width=100)


def tool_file(version: str) -> str:
    """The tool class."""
    return textwrap.dedent(
        f'''\
        """The tools of a grounding experiment for verl {version}: zoom and its like.

        All they do is in saccade.grounding.verl_tool. Without verl this file can be imported and
        its tools run, with stand-ins for verl's two classes.
        """

        from pathlib import Path

        from saccade.grounding.verl_tool import ScreenTool

        try:
            from verl.tools.base_tool import BaseTool
            from verl.tools.schemas import ToolResponse
        except ModuleNotFoundError:
            from saccade.grounding.verl_tool import PlainResponse as ToolResponse
            from saccade.grounding.verl_tool import PlainTool as BaseTool


        class GroundingTool(ScreenTool, BaseTool):
            """One tool, by the name in its schema."""

            folder = Path(__file__).resolve().parent
            response = ToolResponse
        '''
    )


def reward_file() -> str:
    """The reward function."""
    return textwrap.dedent(
        '''\
        """The reward of a grounding experiment: verl calls compute_score for each episode."""

        from functools import cache
        from pathlib import Path

        from saccade.grounding.verl_tool import KEPT, Settings, score


        @cache
        def settings() -> Settings:
            """What is paid, read once."""
            return Settings.read(Path(__file__).resolve().parent)


        def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
            """All parts of the reward by name; `score` is their sum."""
            kept = (extra_info or {}).get(KEPT)
            return score(solution_str, target=ground_truth, kept=kept, settings=settings())
        '''
    )


def check_file(longest: int) -> str:
    """What run.sh asks before it trains."""
    return textwrap.dedent(
        f'''\
        """python saccade_check.py MODEL: does a model fit the rows and settings beside this file?
        python saccade_check.py --parity ENGINE LOG: does the engine sample what is trained?
        """

        import sys
        from pathlib import Path

        from saccade.config.errors import InputError, OutsideError
        from saccade.grounding.verl_check import check_model, check_sampler, parity_file

        HERE = Path(__file__).resolve().parent
        MOST_TOKENS = {longest}


        def main(words: list[str]) -> None:
            if words[0] == "--parity":
                found = check_sampler(Path(words[2]).read_text(encoding="utf-8"))
                print(f"parity: {{found}} -> {{parity_file(HERE, engine=words[1], found=found)}}")
                return
            from transformers import AutoProcessor

            processor = AutoProcessor.from_pretrained(words[0])
            print("model:", check_model(processor, folder=HERE, most_tokens=MOST_TOKENS))


        if __name__ == "__main__":
            try:
                main(sys.argv[1:])
            except (InputError, OutsideError) as error:
                sys.exit(f"saccade_check: {{error}}")
        '''
    )


def script(config: Config, *, arguments: Mapping[str, Mapping[str, Any]], version: str) -> str:
    """The launch script: a check of the model, one step for parity, then the training."""
    lines = []
    for section, values in arguments.items():
        lines.append(f"  # {section}")
        lines += [f"  {argument(key, value)}" for key, value in values.items()]
    head = textwrap.dedent(
        f"""\
        #!/usr/bin/env bash
        # Grounding by verl {version} (Ray underneath), with the settings of `saccade train`.
        #   bash run.sh parity            one step; keeps that the engine samples what is trained
        #   bash run.sh [key=value ...]   trains, or continues from the newest checkpoint
        # On several machines: the same folder and PYTHONPATH on each, `ray start` first, NODES=n.
        set -euo pipefail
        HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
        MODEL="${{MODEL:-{config.model.name}}}"
        ENGINE="${{ENGINE:-vllm}}" GPUS="${{GPUS:-1}}" NODES="${{NODES:-1}}"
        # episodes per GPU and pass; share of a GPU's memory that the engine takes
        MICRO="${{MICRO:-1}}" ENGINE_MEMORY="${{ENGINE_MEMORY:-0.4}}"
        # Ray's workers import tools and reward from here
        export PYTHONPATH="$HERE${{PYTHONPATH:+:$PYTHONPATH}}"
        """
    )
    tail = textwrap.dedent(
        """\

        python "$HERE/saccade_check.py" "$MODEL"
        if [ "${1:-}" = parity ]; then
          shift
          log="$HERE/parity-$ENGINE.log"
          python -m verl.trainer.main_ppo "${options[@]}" "$@" trainer.total_training_steps=1 \\
            trainer.val_before_train=False trainer.save_freq=-1 trainer.test_freq=-1 \\
            trainer.logger='[console]' trainer.resume_mode=disable \\
            algorithm.filter_groups.enable=False 2>&1 | tee "$log"
          exec python "$HERE/saccade_check.py" --parity "$ENGINE" "$log"
        fi
        if [ ! -f "$HERE/parity-$ENGINE.json" ]; then
          echo "not known yet whether $ENGINE samples what is trained: bash run.sh parity" >&2
          exit 2
        fi
        exec python -m verl.trainer.main_ppo "${options[@]}" "$@"
        """
    )
    return head + "options=(\n" + "\n".join(lines) + "\n)\n" + tail


def argument(key: str, value: Any) -> str:
    """One option as bash reads it; `$NAME` stays a variable."""
    text = f"{key}={hydra(value)}"
    return f'"{text}"' if re.search(r"\$[A-Z]", text) else shlex.quote(text)


def hydra(value: Any) -> str:
    """A value as Hydra's grammar writes it."""
    if isinstance(value, bool):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def readme(config: Config, *, notes: Sequence[str], version: str, rows: int) -> str:
    """What the folder is and how it is run."""
    listed = "\n".join(f"- {note}" for note in notes)
    return f"""# Grounding with verl {version}

Written by `saccade export verl`: {rows} rows, groups of {config.grounding.grpo.group} episodes, \
{config.training.steps} steps, model `{config.model.name}`.

## Set up

Linux, an NVIDIA GPU, Python {PYTHON}. verl {version} pins torch 2.11 and transformers 5.9, saccade
newer ones; the part of saccade that is called here needs neither.

```
pip install "verl[vllm,fsdp]=={version}"
pip install {NEEDS}
pip install --no-deps PATH_OF_YOUR_CHECKOUT_OF_SACCADE
```

## Run

```
bash run.sh parity      # one step: does the engine sample what is trained?
bash run.sh             # trains; called again, it continues
```

`run.sh` first checks that the model's processor shows pictures as the rows have them. It does not
train before `parity` has measured, on real episodes, that the engine's probabilities are the
trainer's: at most {MOST_DIFFERENCE} apart on average, correlated by at least {LEAST_AGREEMENT}.

Variables: `MODEL` (a folder or hub name), `ENGINE` (`vllm` or `sglang`), `GPUS`, `NODES`, `MICRO`
(episodes per GPU and pass; raise it while memory lasts), `ENGINE_MEMORY`. Any option of verl can be
given at the end: `bash run.sh trainer.total_training_steps=50`.

## Files

| file | what it is |
|---|---|
| `train.parquet`, `validation.parquet` | rows in verl's schema, with the model's first look |
| `screens/` | whole screenshots, from which crops are cut |
| `settings.json` | what tools and reward go by: tools, prices, coordinates, sizes |
| `tools.yaml`, `saccade_tool.py` | the tools; they call `saccade.grounding.environment` |
| `saccade_reward.py` | the reward; it calls `saccade.grounding.rewards` and logs every part |
| `saccade_check.py` | the checks of `run.sh` |

## What verl does otherwise

{listed}

verl starts from a model that can call tools already: a base that knows tools by itself, as
Qwen3-VL does, or the warm-up's of `saccade train grounding`: `MODEL=runs/NAME-warm/model`.
"""
