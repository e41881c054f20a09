"""Resolving configuration: precedence, provenance, sources of data, errors in the user's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.config.layers import GROUPS, group_options, packaged_recipes
from saccade.config.resolve import Resolved, resolve
from saccade.config.schema import Config, FolderSource, JsonlSource, ScenesSource

EXAMPLES = Path(__file__).parents[2] / "examples"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def complaint(*args: str, **kwargs: object) -> str:
    with pytest.raises(InputError) as caught:
        resolve(*args, **kwargs)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_shipped_recipe_resolves_and_opens_with_a_lab_record(name: str) -> None:
    resolved = resolve(name)
    assert isinstance(resolved.config, Config)
    assert resolved.recipe == name
    source = Path(__file__).parents[2] / "src/saccade/config/recipes" / f"{name}.yaml"
    record = [line for line in source.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "hardware", "expected"):
        assert any(word in line or "time, score" in line for line in record), word


@pytest.mark.parametrize(
    "choice", [f"{group}={option}" for group in GROUPS for option in group_options(group)]
)
def test_every_shipped_group_option_resolves(choice: str) -> None:
    group, _, option = choice.partition("=")
    sources = resolve(overrides=[choice]).sources
    assert any(where.startswith(f"{group}/{option}.yaml:") for where in sources.values())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_example_resolves(path: Path) -> None:
    assert any(where.startswith(f"{path}:") for where in resolve(str(path)).sources.values())


@pytest.mark.parametrize("name", ["relevance", "tiny-base"])
def test_every_recipe_has_a_smoke_twin_of_a_few_steps(name: str) -> None:
    twin = resolve(f"smoke/{name}").config
    assert twin.recipe == name
    assert twin.training.steps <= 10
    assert twin.run.name != resolve(name).config.run.name


def test_without_a_recipe_the_relevance_recipe_is_meant() -> None:
    assert resolve().config == resolve("relevance").config


def test_precedence_is_recipe_yaml_training_file_environment_command_line(tmp_path: Path) -> None:
    file = written(tmp_path, "my.yaml", "training:\n  steps: 11\n")
    flat = written(tmp_path, ".training", "MAX_STEPS=12\n")
    env = {"SACCADE_MAX_STEPS": "13"}
    overrides = ["training.steps=14"]

    def steps(**layers: object) -> tuple[int, str]:
        resolved = resolve("relevance", **layers)  # type: ignore[arg-type]
        return resolved.config.training.steps, resolved.sources["training.steps"]

    assert steps()[1].startswith("recipes/relevance.yaml:")
    assert steps(file=file) == (11, f"{file}:2")
    assert steps(file=file, training_file=flat) == (12, f"{flat}:1")
    assert steps(file=file, training_file=flat, env=env) == (13, "environment SACCADE_MAX_STEPS")
    everything = steps(file=file, training_file=flat, env=env, overrides=overrides)
    assert everything == (14, "command line")


def test_every_key_has_a_source_and_untouched_ones_say_default() -> None:
    resolved = resolve(overrides=["training.beta2=0.9"])
    assert set(resolved.sources) == set(resolved.values())
    assert resolved.sources["training.beta2"] == "command line"
    assert resolved.sources["selector.width"] == "default"


def test_the_source_line_of_a_recipe_value_holds_that_value() -> None:
    root = Path(__file__).parents[2] / "src/saccade/config"
    for key, where in resolve("smoke/relevance").sources.items():
        if where == "default":
            continue
        name, _, line = where.partition(":")
        assert key.rpartition(".")[2] in (root / name).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["run.name=2024", "selector.keep=1.0", "tracking.wandb=off", "training.learning_rate=1e-5"],
        ["run.name=1e-5", "model.name=true", "model.revision=null", "selector.keep=1"],
        ["data.train.type=folder", "data.train.path=/a b/c=d", "data.train.columns={question: 0}"],
    ],
)
def test_written_yaml_resolves_to_the_same_configuration(
    tmp_path: Path, overrides: list[str]
) -> None:
    resolved = resolve(overrides=overrides)
    again = resolve(str(written(tmp_path, "config.yaml", resolved.to_yaml())))
    assert again.config == resolved.config
    assert repr(again.config) == repr(resolved.config)  # 1 and 1.0 are equal but not the same


def test_a_share_stays_a_share_and_a_count_stays_a_count(tmp_path: Path) -> None:
    def kept(text: str) -> object:
        return resolve(training_file=written(tmp_path, ".training", text)).config.selector.keep

    for text, value in (("1.0", 1.0), ("1", 1), ("64", 64), ("0.25", 0.25)):
        for found in (
            resolve(overrides=[f"selector.keep={text}"]).config.selector.keep,
            kept(f"NUM_VISUAL_TOKENS={text}\n"),
        ):
            assert found == value
            assert type(found) is type(value)


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", ".00001", "+1e-05"])
def test_every_way_to_write_a_small_number_is_a_number_everywhere(
    tmp_path: Path, text: str
) -> None:
    file = written(tmp_path, "my.yaml", f"training:\n  learning_rate: {text}\n")
    flat = written(tmp_path, ".training", f"LEARNING_RATE={text}\n")
    found = [
        resolve(str(file)),
        resolve(training_file=flat),
        resolve(env={"SACCADE_LEARNING_RATE": text}),
        resolve(overrides=[f"training.learning_rate={text}"]),
    ]
    assert [one.config.training.learning_rate for one in found] == [1e-5] * 4


def test_off_in_yaml_is_the_word_and_not_false(tmp_path: Path) -> None:
    file = written(tmp_path, "my.yaml", "tracking:\n  wandb: off\n")
    assert resolve(str(file)).config.tracking.wandb == "off"


def test_a_dotted_key_and_a_nested_key_in_yaml_mean_the_same(tmp_path: Path) -> None:
    dotted = resolve(str(written(tmp_path, "a.yaml", "training.steps: 7\n")))
    nested = resolve(str(written(tmp_path, "b.yaml", "training:\n  steps: 7\n")))
    assert dotted.config == nested.config


def test_an_empty_file_and_empty_sections_change_nothing(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "training:\n", "training: {}\ndata:\n  train:\n"):
        assert resolve(str(written(tmp_path, "my.yaml", text))).config == resolve().config


def test_a_new_source_type_starts_afresh_and_drops_the_scenes_keys() -> None:
    resolved = resolve(overrides=["data.train.type=folder", "data.train.path=photos"])
    assert resolved.config.data.train == FolderSource(type="folder", path=Path("photos"))
    assert isinstance(resolved.config.data.eval, ScenesSource)
    assert "data.train.scenes" not in resolved.sources


def test_a_source_can_be_changed_in_yaml_and_refined_on_the_command_line(tmp_path: Path) -> None:
    text = "data:\n  train:\n    type: jsonl\n    path: a.jsonl\n    columns: {answer: label}\n"
    file = written(tmp_path, "my.yaml", text)
    train = resolve(
        str(file), overrides=["data.train.path=b.jsonl", "data.train.columns.question=q"]
    ).config.data.train
    columns = {"answer": "label", "question": "q"}
    assert train == JsonlSource(type="jsonl", path=Path("b.jsonl"), columns=columns)  # type: ignore[arg-type]


def test_a_group_option_on_the_command_line_beats_the_users_yaml(tmp_path: Path) -> None:
    file = written(tmp_path, "my.yaml", "data:\n  train: {type: jsonl, path: a.jsonl}\n")
    resolved = resolve(str(file), overrides=["data=scenes-32px", "data.train.scenes=5"])
    train = resolved.config.data.train
    assert isinstance(train, ScenesSource)
    assert (train.cell_pixels, train.scenes) == (32, 5)
    assert resolved.sources["data.train.cell_pixels"].endswith("(command line)")


def test_a_tilde_takes_a_key_back_to_its_default() -> None:
    assert resolve(overrides=["~training.save_every"]).config.training.save_every == 50
    resolved = resolve("smoke/relevance", overrides=["~training.steps"])
    assert resolved.sources["training.steps"] == "default"


def test_text_keys_take_the_rest_of_the_word_as_it_is() -> None:
    found = resolve(
        overrides=["data.train.type=folder", "data.train.path=/a b/{c},[d]=e",
                   "data.train.image_format=images/{}.png", "run.name='007'"]
    ).config  # fmt: skip
    assert isinstance(found.data.train, FolderSource)
    assert str(found.data.train.path) == "/a b/{c},[d]=e"
    assert found.data.train.image_format == "images/{}.png"
    assert found.run.name == "007"


def test_all_mistakes_of_all_layers_are_named_at_once(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "my.yaml",
        "training:\n  lerning_rate: 1e-3\n  steps: many\narch: 5\nselector:\n  keep: 1.5\n",
    )
    flat = written(tmp_path, ".training", "\nBATCHSIZE=4\nWEIGHT_DECAY=-1\nnot a line\n")
    text = complaint(
        file=file,
        training_file=flat,
        env={"SACCADE_SED": "1", "PATH": "/bin"},
        overrides=["training.warmup_ratio=2", "model=tny", "eval.seeds=1,2", "word"],
    )
    expected = [
        f"{file}:2: training.lerning_rate = 0.001: unknown key; did you mean"
        " training.learning_rate?",
        f"{file}:3: training.steps = many: expected integer >= 1",
        f"{file}:4: arch = 5: expected a mapping",
        f"{file}:6: selector.keep = 1.5: expected integer >= 1 or number in (0, 1]",
        f"{flat}:2: BATCHSIZE = 4: unknown name; did you mean BATCH_SIZE?",
        f"{flat}:3: WEIGHT_DECAY (training.weight_decay) = -1: expected number >= 0",
        f"{flat}:4: `not a line` is not NAME=value",
        "environment SACCADE_SED: 1: unknown name; did you mean SACCADE_SEED?",
        "command line: training.warmup_ratio = 2: expected number in [0, 1)",
        "command line: model = tny: unknown option; did you mean tiny?",
        "command line: eval.seeds=1,2: one value expected",
        "command line: word: expected key=value",
    ]
    for line in expected:
        assert line in text, text
    assert text.startswith(f"{len(expected)} mistakes in the configuration\n")


def test_an_unknown_source_type_lists_the_valid_ones_and_nothing_else() -> None:
    text = complaint(overrides=["data.train.type=flder", "data.train.path=x"])
    assert text == (
        "command line: data.train.type = flder: expected one of scenes, jsonl, parquet, folder,"
        " hub, layout, probing, captions, preferences, sudoku, maze, arc, columns, arrays,"
        " shards, logic, stream, screens, screenspot, grounding; did you mean folder?"
    )


def test_a_missing_key_of_a_source_names_only_the_chosen_type() -> None:
    text = complaint(overrides=["data.train.type=jsonl"])
    assert "data.train.path: required for type jsonl" in text
    assert "parquet" not in text


def test_a_key_of_another_source_type_says_which_types_have_it() -> None:
    text = complaint(overrides=["data.train.path=photos"])
    others = (
        "jsonl, parquet, folder, layout, arc, columns, arrays, shards, stream, screenspot,"
        " grounding"
    )
    assert f"not a key of type scenes but of {others}; set data.train.type" in text


def test_a_wrong_column_name_lists_the_valid_ones() -> None:
    text = complaint(
        overrides=["data.train.type=jsonl", "data.train.path=x", "data.train.columns={anser: a}"]
    )
    assert "data.train.columns.anser" in text
    assert "id, image, question, answer, kind" in text


def test_a_wrong_item_of_a_list_is_named_by_its_position() -> None:
    text = complaint(overrides=["selector.keep_curriculum=[0.5,2]"])
    assert text.startswith("command line: selector.keep_curriculum[1] = 2: expected list of")


@pytest.mark.parametrize(
    ("recipe", "hint"),
    [("relevence", "did you mean relevance?"), ("smoke/tinybase", "did you mean smoke/tiny-base?")],
)
def test_an_unknown_recipe_names_the_nearest_one(recipe: str, hint: str) -> None:
    assert hint in complaint(recipe)


def test_two_places_that_name_different_recipes_are_a_mistake(tmp_path: Path) -> None:
    file = written(tmp_path, "my.yaml", "recipe: tiny-base\n")
    assert resolve(str(file)).config.recipe == "tiny-base"
    assert "name only one" in complaint("relevance", file=file)


def test_a_missing_file_and_broken_yaml_and_a_repeated_key_are_named(tmp_path: Path) -> None:
    assert "No such file" in complaint(str(tmp_path / "absent.yaml"))
    broken = written(tmp_path, "broken.yaml", "training:\n  steps: [1\n")
    assert f"{broken}:3: not YAML" in complaint(str(broken))
    twice = written(tmp_path, "twice.yaml", "training:\n  steps: 1\n  steps: 2\n")
    assert f"{twice}:3: training.steps: given twice (first in line 2)" in complaint(str(twice))
    listed = written(tmp_path, "list.yaml", "- a\n")
    assert "expected `key: value` lines" in complaint(str(listed))


def test_resolving_leaves_a_callers_hydra_as_it_was() -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    assert isinstance(resolve(), Resolved)
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(version_base="1.3", config_dir=str(Path(__file__).parent)):
        before = GlobalHydra.instance().hydra
        resolve()
        assert GlobalHydra.instance().hydra is before
