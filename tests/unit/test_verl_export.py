"""The exported verl experiment: rows, options, tools that crop, and a reward that is ours.

verl itself is needed by two tests only, which are skipped where it is not installed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import Config
from saccade.data.boxes import Box
from saccade.grounding.environment import Answer, most_calls
from saccade.grounding.rewards import Outcome, reward_of
from saccade.grounding.verl_check import check_model, check_sampler
from saccade.grounding.verl_tool import KEPT, Settings
from saccade.launch.exports.verl import (
    Sees,
    differences,
    export_verl,
    policy_of,
    refuse_what_verl_cannot,
    settings_of,
)
from tests.dialogue_example import ready

SEES = Sees(cell=16, least=32 * 32, most=512 * 512)
AREA = 128 * 96


def config(model: str, **changes: Any) -> Config:
    screens = {"type": "screens", "screens": 3, "targets": 4, "renderer": "drawn"}
    values = {
        "recipe": "grounding",
        "model": {"name": model, "max_pixels": AREA},
        "data": {"train": screens, "eval": {**screens, "split": "test"}},
        "training": {"batch_size": 4, "eval_samples": 4, "steps": 7, "learning_rate": 1e-4},
        "grounding": {"answer": "point", "grpo": {"group": 6, "epsilon_high": 0.3}},
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        values.setdefault(section, {})
        values[section] = {**values[section], leaf: value} if leaf else value
    return Config.model_validate(values)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    made = ready()
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def experiment(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verl") / "experiment"
    export_verl(config(model), folder=folder, sees=SEES)
    return folder


def rows(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()


def imported(file: Path) -> ModuleType:
    """The file as verl imports it: by its path, under its own name."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def schema_of(folder: Path) -> Any:
    """The tool's schema; verl's class where it is installed."""
    schema = yaml.safe_load((folder / "tools.yaml").read_text())["tools"][0]["tool_schema"]
    if importlib.util.find_spec("verl") is None:
        return schema
    from verl.tools.schemas import OpenAIFunctionToolSchema  # type: ignore[import-not-found]

    return OpenAIFunctionToolSchema.model_validate(schema)


def called(folder: Path, row: dict[str, Any], *calls: dict[str, Any], at_once: int = 1) -> Any:
    """Calls of one trajectory, one after another, as verl's agent loop makes them."""
    tool = imported(folder / "saccade_tool.py").GroundingTool({"type": "native"}, schema_of(folder))
    agent = SimpleNamespace(extra_fields={}, tool_calls=[None] * at_once)

    async def play() -> list[Any]:
        answers = []
        for parameters in calls:
            given = row["extra_info"]["tools_kwargs"][tool.name]["create_kwargs"]
            number, _ = await tool.create(create_kwargs=given)
            answers.append(await tool.execute(number, parameters, agent_data=agent))
            await tool.release(number)
        return answers

    return asyncio.run(play()), agent.extra_fields.get(KEPT)


def paid(folder: Path, row: dict[str, Any], text: str, kept: str | None = None) -> dict[str, float]:
    compute = imported(folder / "saccade_reward.py").compute_score
    extra = {**row["extra_info"], **({KEPT: kept} if kept else {})}
    return compute(row["data_source"], text, row["reward_model"]["ground_truth"], extra, other=1)


def target(row: dict[str, Any]) -> Box:
    return Box(*json.loads(row["reward_model"]["ground_truth"])["box"])


def said(x: float, y: float) -> str:
    return f"[{round(1000 * x)}, {round(1000 * y)}]"


def zoomed(row: dict[str, Any]) -> dict[str, Any]:
    return {"box": [round(1000 * edge) for edge in target(row)]}


def written(parameters: dict[str, Any], answer: str) -> str:
    """A trajectory's text as verl decodes it: special tokens are gone."""
    call = json.dumps({"name": "zoom", "arguments": parameters})
    return (
        f"<tool_call>\n{call}\n</tool_call>\nuser\n<tool_response>\n\n</tool_response>\nassistant\n"
        f"{answer}"
    )


# rows and files ----------------------------------------------------------------------------------


def test_the_rows_are_in_verls_schema_with_the_first_look_in_them(experiment: Path) -> None:
    train, validation = rows(experiment), rows(experiment, "validation")
    assert len(validation) == 4
    assert {row["extra_info"]["split"] for row in validation} == {"validation"}
    assert [row["extra_info"]["index"] for row in train] == list(range(len(train)))
    row = train[0]
    assert row["prompt"][-1]["role"] == "user"
    assert row["prompt"][-1]["content"].startswith("<image>Click ")
    shown = Image.open(io.BytesIO(row["images"][0]["bytes"])).size
    aim = json.loads(row["reward_model"]["ground_truth"])
    assert list(shown) == aim["shown"] == [96, 96]
    given = row["extra_info"]["tools_kwargs"]["zoom"]["create_kwargs"]
    with Image.open(experiment / given["screen"]) as whole:
        assert list(whole.size) == aim["size"] == [800, 800]
    # targets of one page share its file
    assert len(list((experiment / "screens").iterdir())) < len(train) + len(validation)


def test_no_file_holds_a_path_of_this_machine(experiment: Path, model: str) -> None:
    for name in ("tools.yaml", "settings.json", "saccade_tool.py", "saccade_reward.py"):
        text = (experiment / name).read_text()
        assert str(experiment) not in text and model not in text


def test_the_script_is_bash_and_carries_our_settings(experiment: Path) -> None:
    script = experiment / "run.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    for option in (
        "actor_rollout_ref.rollout.n=6",
        "actor_rollout_ref.actor.clip_ratio_low=0.2",
        "actor_rollout_ref.actor.clip_ratio_high=0.3",
        "actor_rollout_ref.actor.optim.lr=0.0001",
        "actor_rollout_ref.actor.loss_scale_factor=96",
        "actor_rollout_ref.model.lora_rank=16",
        "trainer.total_training_steps=7",
        "data.train_batch_size=4",
        "algorithm.norm_adv_by_std_in_grpo=False",
        "algorithm.filter_groups.metric=teaches",
    ):
        assert f"  {option}\n" in text, option


def test_the_script_trains_nothing_before_the_engine_was_compared(experiment: Path) -> None:
    tools = experiment.parent / "tools"
    tools.mkdir()
    (tools / "python").write_text('#!/bin/bash\necho "$@"\n')
    (tools / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(experiment / "run.sh")], env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "bash run.sh parity" in done.stderr
    assert "main_ppo" not in done.stdout
    (experiment / "parity-vllm.json").write_text("{}")
    done = subprocess.run(
        ["bash", str(experiment / "run.sh"), "trainer.nnodes=1"],
        env={"PATH": f"{tools}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (experiment / "parity-vllm.json").unlink()
    assert done.returncode == 0, done.stderr
    assert "-m verl.trainer.main_ppo data.train_files=" in done.stdout
    assert "actor_rollout_ref.model.exclude_modules='.*visual.*'" in done.stdout
    assert done.stdout.strip().endswith("trainer.nnodes=1")


def test_a_kl_term_and_full_training_are_passed_on(model: str, tmp_path: Path) -> None:
    grpo = {"beta": 0.01, "adapter": "none", "filter": "same", "group": 2}
    export_verl(config(model, grounding={"grpo": grpo}), folder=tmp_path, sees=SEES)
    text = (tmp_path / "run.sh").read_text()
    assert "actor_rollout_ref.actor.use_kl_loss=True" in text
    assert "actor_rollout_ref.actor.kl_loss_coef=0.01" in text
    assert "algorithm.filter_groups.metric=acc" in text
    assert "lora_rank" not in text
    assert "vision tower is trained, too" in (tmp_path / "README.md").read_text()


# tools -------------------------------------------------------------------------------------------


def test_a_call_returns_pixels_of_the_place_asked_for(experiment: Path) -> None:
    row = rows(experiment)[0]
    (answer,), kept = called(experiment, row, zoomed(row))
    response, step_reward, counts = answer
    (crop,) = response.image
    assert crop.width * crop.height == counts["pixels"] > AREA
    assert step_reward == 0.0 and counts["ok"]
    seen = json.loads(kept)
    assert seen["calls"] == seen["zooms"] == 1
    assert Box(*seen["box"]).contains(*target(row).center)
    given = row["extra_info"]["tools_kwargs"]["zoom"]["create_kwargs"]
    with Image.open(experiment / given["screen"]) as whole:
        left, top, right, bottom = (round(edge) for edge in Box(*seen["box"]).pixels(whole.size))
        part = whole.convert("RGB").crop((left, top, right, bottom))
    assert crop.tobytes() == part.resize(crop.size, Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize(
    "nonsense",
    [{"box": "there"}, {}, {"box": [5, 5, 1, 1]}, {"box": [0, 0, 5000, 10]}, {"place": [1, 2]}],
)
def test_nonsense_is_answered_with_a_text_and_counted(
    experiment: Path, nonsense: dict[str, Any]
) -> None:
    ((response, _, counts),), kept = called(experiment, rows(experiment)[0], nonsense)
    assert response.text.startswith("error: ") and not response.image
    assert not counts["ok"]
    assert json.loads(kept)["calls"] == 1 and json.loads(kept)["zooms"] == 0


def test_a_second_zoom_of_a_trajectory_is_refused_and_several_at_once_are_too(
    experiment: Path,
) -> None:
    row = rows(experiment)[0]
    (_, (second, _, _)), kept = called(experiment, row, zoomed(row), zoomed(row))
    assert second.text == "error: no zoom left: answer now"
    assert json.loads(kept)["calls"] == 2
    ((both, _, _),), kept = called(experiment, row, zoomed(row), at_once=2)
    assert "one at a time" in both.text
    assert json.loads(kept)["calls"] == 2


# reward ------------------------------------------------------------------------------------------


def expected(row: dict[str, Any], point: tuple[float, float], *, calls: int, folder: Path) -> Any:
    aim, settings = json.loads(row["reward_model"]["ground_truth"]), Settings.read(folder)
    outcome = Outcome(
        answer=Answer(point=point), box=target(row), size=tuple(aim["size"]), calls=calls,
        zooms=calls, most_calls=most_calls(settings.grounding),
    )  # fmt: skip
    return reward_of(outcome, config=settings.grounding.reward)


@pytest.mark.parametrize("off", [0.0, 0.3])
def test_an_answer_at_once_is_paid_as_we_pay_it(experiment: Path, off: float) -> None:
    row = rows(experiment)[0]
    x, y = target(row).center
    x = x - off if x > 0.5 else x + off
    ours = expected(row, (round(1000 * x) / 1000, round(1000 * y) / 1000), calls=0,
                    folder=experiment)  # fmt: skip
    found = paid(experiment, row, said(x, y))
    assert found["score"] == pytest.approx(ours.total)
    assert found["acc"] == ours.hit == (off == 0)
    assert {name: found[f"part_{name}"] for name in ours.parts} == pytest.approx(ours.parts)


def test_an_answer_after_a_crop_is_read_on_the_crop_and_pays_for_it(experiment: Path) -> None:
    row = rows(experiment)[0]
    _, kept = called(experiment, row, zoomed(row))
    view = Box(*json.loads(kept)["box"])
    x, y = view.left + 0.4 * view.width, view.top + 0.7 * view.height
    found = paid(experiment, row, written(zoomed(row), "[400, 700]"), kept)
    ours = expected(row, (x, y), calls=1, folder=experiment)
    assert found["score"] == pytest.approx(ours.total)
    assert found["part_call"] < 0


def test_what_is_forged_gains_nothing(experiment: Path) -> None:
    row = rows(experiment)[0]
    aim, (x, y) = zoomed(row), target(row).center
    honest = paid(experiment, row, said(x, y))["score"]
    wrong = paid(experiment, row, said(1 - x, 1 - y))["score"]
    # a crop that was never shown: the answer is read on the whole screenshot, the call costs
    forged = paid(experiment, row, written(aim, said(x, y)))
    assert forged["zooms"] == 0 and forged["score"] < honest
    call = written(aim, "").partition("\nuser")[0]
    for text in (call, call * 10, "<tool_call>", written(aim, ""), written(aim, call), ""):
        assert paid(experiment, row, text)["score"] <= wrong
    assert paid(experiment, row, call * 10)["score"] < paid(experiment, row, call)["score"]
    inside = f"<tool_response>{said(x, y)}</tool_response>"
    assert paid(experiment, row, inside)["acc"] == 0


def test_a_group_is_left_out_where_nobody_was_right(experiment: Path) -> None:
    row = rows(experiment)[0]
    x, y = target(row).center
    wrong = [paid(experiment, row, text)["teaches"] for text in ("", "[0, 0]", said(1 - x, 1 - y))]
    assert set(wrong) == {0.0}
    right = paid(experiment, row, said(x, y))["teaches"]
    dearer = paid(experiment, row, written(zoomed(row), said(x, y)))["teaches"]
    assert right > dearer > 0


# what cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"grounding": {"grpo": {"curiosity": 0.2}}}, "curiosity"),
        ({"grounding": {"grpo": {"budget": 0.4}}}, "grpo.budget=null"),
        ({"grounding": {"grpo": {"choice": 3}}}, "grpo.choice=0"),
        ({"grounding": {"reward": {"confidence": 0.2}}}, "reward.stated=true"),
        ({"grounding": {"reward": {"tool": 0.2}}}, "reward.tool"),
        ({"grounding": {"selector": "relevance"}}, "selector"),
        ({"training": {"schedule": "linear"}}, "cosine"),
        ({"recipe": "relevance"}, "grounding"),
    ],
)
def test_what_verl_would_not_obey_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        refuse_what_verl_cannot(config("tiny", **changes))


def test_a_base_without_tools_is_refused() -> None:
    with pytest.raises(InputError, match="knows no tools"):
        policy_of(config("tiny"))


def test_looks_that_the_processor_would_enlarge_are_refused(model: str) -> None:
    chosen = config(model)
    with pytest.raises(InputError, match="max_pixels"):
        settings_of(chosen, sees=Sees(cell=32, least=65_536, most=2**24), policy=policy_of(chosen))


def test_a_model_out_of_reach_needs_its_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", _out_of_reach)
    chosen = config("nobody/no-such-model")
    with pytest.raises(OutsideError, match="0-1000"):
        policy_of(chosen)
    told = config("nobody/no-such-model", grounding={"coordinates": "0-1000"})
    policy = policy_of(told)
    assert policy.length([{"role": "user", "content": "Click it."}]) > 50
    assert any("guessed" in note for note in differences(told, policy=policy))


def _out_of_reach(*_: Any, **__: Any) -> Any:
    raise OSError("no network")


# checks before training --------------------------------------------------------------------------


def test_the_check_measures_prompts_as_long_as_the_exporter_said(
    experiment: Path, model: str
) -> None:
    from saccade.models.processing import load_processor

    processor = load_processor(model)
    found = check_model(processor, folder=experiment, most_tokens=10_000)
    assert found["cell"] == 16
    longest = found["longest prompt"]
    option = (experiment / "run.sh").read_text().partition("data.max_prompt_length=")[2]
    assert longest <= int(option.split()[0]) < longest + 128
    with pytest.raises(InputError, match="max_prompt_length"):
        check_model(processor, folder=experiment, most_tokens=10)
    processor.image_processor.size = {"shortest_edge": 65_536, "longest_edge": 2**24}
    with pytest.raises(InputError, match="would be shown"):
        check_model(processor, folder=experiment, most_tokens=10_000)


def test_an_engine_that_samples_another_model_is_refused() -> None:
    line = (
        "step:1 - training/rollout_probs_diff_mean:{} - actor/lr:1e-06"
        " - training/rollout_actor_probs_pearson_corr:{}"
    )
    assert check_sampler(line.format("0.004", "0.999"))
    for bad in (("0.2", "0.999"), ("0.004", "0.7"), ("nan", "nan")):
        with pytest.raises(InputError, match="not the model that is trained"):
            check_sampler(line.format(*bad))
    with pytest.raises(OutsideError, match="parity"):
        check_sampler("out of memory")


# the verb, and verl itself -----------------------------------------------------------------------


def test_the_verb_writes_a_folder_and_replaces_none(model: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "saccade.cli", "export", "verl", "grounding", f"model.name={model}",
        "data.train.renderer=drawn", "data.eval.renderer=drawn", "data.train.screens=2",
        "training.batch_size=2", "training.eval_samples=2", "grounding.grpo.budget=null",
        "--samples", "5", "--out", "made",
        "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == {"train": 5, "validation": 2}
    assert (tmp_path / "made" / "README.md").read_text().startswith("# Grounding with verl 0.9.1")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "--force" in again.stderr


def test_the_tool_is_one_of_verls_where_verl_is_installed(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pytest.importorskip("verl.tools.base_tool", reason="verl is not installed")
    registry = pytest.importorskip("verl.tools.tool_registry")
    monkeypatch.syspath_prepend(str(experiment))
    monkeypatch.delitem(sys.modules, "saccade_tool", raising=False)
    (tool,) = registry.initialize_tools_from_config(str(experiment / "tools.yaml"))
    assert isinstance(tool, base.BaseTool)
    ((response, _, _),), _ = called(experiment, rows(experiment)[0], zoomed(rows(experiment)[0]))
    assert type(response).__module__ == "verl.tools.schemas"


def test_every_option_is_one_of_verls_where_verl_is_installed(experiment: Path) -> None:
    verl = pytest.importorskip("verl", reason="verl is not installed")
    from hydra import compose, initialize_config_dir

    text = (experiment / "run.sh").read_text().partition("options=(")[2].partition("\n)")[0]
    command = f"HERE=/x MODEL=m ENGINE=vllm GPUS=1 NODES=1 MICRO=1 ENGINE_MEMORY=0.4; o=({text}\n)"
    made = subprocess.run(
        ["bash", "-c", command + '; printf "%s\\n" "${o[@]}"'], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    folder = str(Path(verl.__file__).parent / "trainer" / "config")
    with initialize_config_dir(folder, version_base=None):
        composed = compose("ppo_trainer", overrides=made.stdout.splitlines())
    assert composed.actor_rollout_ref.rollout.n == 6
    assert composed.actor_rollout_ref.model.exclude_modules == ".*visual.*"
