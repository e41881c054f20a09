"""Broken rows in all phases of a grounding run: they stop it, or are counted, named, replaced."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from saccade.config.errors import InputError
from saccade.config.resolve import Resolved, resolve
from saccade.data.samples import DataError
from saccade.data.sources import open_source
from saccade.training.events import read_events
from saccade.training.recipes.grounding import open_phase
from saccade.training.recipes.grounding_order import Checked, held_out
from saccade.training.run import run_training
from saccade.training.rundir import RunDir

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = (320, 240)
PHASES = ["places", "warm", "grpo"]


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows: four sound ones, one whose picture ends halfway, one whose box lies outside."""
    folder = tmp_path_factory.mktemp("screens")
    (folder / "images").mkdir()
    for number in range(4):
        noise = Image.effect_noise(SIZE, 60 + number).convert("RGB")
        noise.save(folder / "images" / f"page{number}.png")
    whole = io.BytesIO()
    Image.effect_noise(SIZE, 99).convert("RGB").save(whole, "PNG")
    (folder / "images" / "torn.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    rows = [(f"page{n}.png", [10 + 40 * n, 20, 40, 30]) for n in range(4)]
    rows += [("torn.png", [10, 20, 40, 30]), ("page0.png", [300, 20, 80, 30])]
    listed = [
        {"img_filename": name, "bbox": box, "instruction": f"Click thing {k}.", "id": f"row{k}",
         "data_type": "icon", "data_source": "lab", "img_size": SIZE}
        for k, (name, box) in enumerate(rows)
    ]  # fmt: skip
    (folder / "screenspot.json").write_text(json.dumps(listed), "utf-8")
    return folder


def words(screens: Path, root: Path, *more: str) -> Resolved:
    both = [
        f"data.{part}={{type: screenspot, path: {screens}, layout: v1}}"
        for part in ("train", "eval")
    ]
    return resolve("smoke/grounding", overrides=[
        *both, f"run.root={root}", "training.steps=3", "training.save_every=3",
        "training.threads=1", "training.batch_size=2", "training.eval_samples=6",
        "grounding.grpo.group=2", "grounding.grpo.max_tokens=16", "lora.rank=2",
        "grounding.zoom.pixels=3072", "model.max_pixels=3072", "grounding.places.views=1", *more,
    ])  # fmt: skip


def trained(made: Resolved) -> RunDir:
    quiet = Console(quiet=True)
    run_training(made, make_recipe=open_phase, open_eval=open_source, console=quiet)
    return RunDir.of(made.config)


@pytest.mark.parametrize("phase", PHASES)
def test_broken_rows_are_skipped_counted_and_named(
    phase: str, screens: Path, tmp_path: Path
) -> None:
    run = trained(words(screens, tmp_path, f"grounding.phase={phase}", "data.on_error=skip"))
    events = read_events(run.events_file)
    told = [e["message"] for e in events if "skipped a broken row" in str(e.get("message"))]
    assert len(told) == 2, "each of six rows is seen once in three steps of two"
    assert any("torn.png" in one for one in told)
    assert any("row5" in one or "outside" in one for one in told)
    seen = [name for e in events if e["type"] == "step" for name in e.get("sample_ids", ())]
    assert not {"row4", "row5"} & set(seen)


@pytest.mark.parametrize("phase", PHASES)
def test_a_broken_row_stops_the_run_and_is_named(phase: str, screens: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row4|row5|torn\.png"):
        trained(words(screens, tmp_path, f"grounding.phase={phase}", "data.on_error=stop"))


def test_a_target_without_a_box_is_a_broken_row_of_phases_that_learn_from_boxes(
    tmp_path: Path,
) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "page.png")
    row = {"img_filename": "page.png", "point": [9, 9], "instruction": "Click.", "id": "row0"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    made = words(tmp_path, tmp_path)
    source = open_source(made.config.data.train.model_copy(update={"layout": "points"}))
    assert Checked(source)[0].facts["point"]
    with pytest.raises(DataError, match="learns from boxes"):
        Checked(source, boxed=True)[0]


def test_questions_about_one_picture_decode_it_once(screens: Path, tmp_path: Path) -> None:
    checked = Checked(open_source(words(screens, tmp_path).config.data.train))
    first = checked[0].images[0]
    assert checked[0].images[0] is first
    assert checked[1].images[0] is not first


def test_held_out_rows_that_are_broken_are_left_out_or_stop(screens: Path, tmp_path: Path) -> None:
    source = open_source(words(screens, tmp_path).config.data.eval)
    tasks = [one for batch in held_out(source, limit=6, size=4, skip=True) for one in batch]
    assert [one.sample.id for one in tasks] == ["row0", "row1", "row2", "row3"]
    with pytest.raises(DataError, match=r"torn\.png|row4"):
        list(held_out(source, limit=6, size=4, skip=False))


@pytest.mark.parametrize("phase", PHASES)
def test_a_benchmark_is_trained_on_only_where_somebody_insists(
    phase: str, screens: Path, tmp_path: Path
) -> None:
    rows = json.loads((screens / "screenspot.json").read_text("utf-8"))
    (tmp_path / "screenspot_web_v2.json").write_text(json.dumps(rows[:4]), "utf-8")
    (tmp_path / "images").symlink_to(screens / "images")
    asked = [
        f"grounding.phase={phase}", f"data.train.path={tmp_path}", "data.train.layout=v2",
        "data.eval.limit=2",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"public benchmark[\s\S]*allow_benchmark=true"):
        trained(words(screens, tmp_path / "runs", *asked))
    if phase == "places":
        allowed = words(screens, tmp_path / "more", *asked, "data.train.allow_benchmark=true")
        assert trained(allowed).done()
