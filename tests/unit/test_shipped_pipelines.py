"""The pipelines that ship: what follows what, that twins match, that data is looked at first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from saccade.config.layers import CONFIG_DIR
from saccade.config.schema import ScenesSource
from saccade.data.images import load_image
from saccade.data.sources import open_source
from saccade.pipeline.execute import GateClosed, Runner, run_serially
from saccade.pipeline.graph import Pipeline
from saccade.pipeline.pipeline_file import find_pipeline, read_pipeline
from saccade.pipeline.plan import make_plan
from saccade.pipeline.variants import find_ablation
from saccade.training.guards import StopRequest

FULL = ("quickstart", "vlm", "arr-coc-production")


def shipped(name: str) -> Pipeline:
    pipeline, problems = find_pipeline(name)
    assert not problems
    return pipeline


@pytest.mark.parametrize("name", FULL)
def test_a_smoke_twin_has_the_same_stages_in_the_same_order(name: str) -> None:
    full, twin = shipped(name), shipped(f"{name}-smoke")
    assert twin.name == f"{name}-smoke"
    assert (twin.graph(), twin.parallel) == (full.graph(), full.parallel)
    for stage in full.stages:
        one, other = full.stages[stage], twin.stages[stage]
        assert one.uses == other.uses
        assert [(g.bound, g.metric) for g in one.gates] == [
            (g.bound, g.metric) for g in other.gates
        ]


def test_vlm_goes_from_pretraining_to_deployment_and_every_stage_has_a_gate() -> None:
    pipeline = shipped("vlm")
    assert pipeline.order() == ["pretrain", "sft", "dpo", "evaluate", "deploy"]
    assert all(stage.gates for stage in pipeline.stages.values())
    assert pipeline.stages["sft"].settings()["model.name"] == "${inputs.pretrain.model}"
    assert pipeline.stages["dpo"].settings()["model.name"] == "${inputs.sft.model}"


@pytest.mark.parametrize("name", ["vlm", "vlm-smoke"])
def test_the_gates_of_vlm_ask_for_what_each_stage_is_for(name: str) -> None:
    gates = {
        (stage.name, gate.bound, gate.metric): gate.value
        for stage in shipped(name).stages.values()
        for gate in stage.gates
    }
    assert gates["pretrain", "min", "recall_over_chance"] >= 5
    assert gates["sft", "min", "accuracy_gain"] > 0
    assert gates["dpo", "min", "preference_margin"] > 0
    assert gates["dpo", "min", "accuracy_gain"] >= -0.02
    assert gates["deploy", "max", "answers_changed"] == 0


def test_nine_ablations_run_side_by_side_and_are_those_of_the_ablation_file() -> None:
    pipeline = shipped("arr-coc-production")
    after_train = [name for name, needs in pipeline.graph().items() if needs == ["train"]]
    assert len(after_train) == 9
    variants = {one.name: one.settings() for one in find_ablation("relevance").variants}
    assert {name: pipeline.stages[name].settings() for name in after_train} == {
        name: variants[name] for name in after_train
    }
    assert pipeline.stages["train"].needs().keys() == {"data"}
    assert pipeline.stages["evaluate"].needs().keys() == {"train", *after_train}
    assert pipeline.stages["deploy"].needs().keys() == {"evaluate"}
    assert pipeline.parallel > 1


def test_a_shipped_file_opens_with_what_to_type() -> None:
    for path in (CONFIG_DIR / "pipelines").rglob("*.yaml"):
        folder = path.parent.name
        name = f"{path.stem}-smoke" if folder == "smoke" else path.stem
        assert f"#   command    saccade pipeline run {name}" in path.read_text(), path


def write_rows(folder: Path, *, broken: int) -> Path:
    sample = open_source(ScenesSource(scenes=1, min_cells=16, max_cells=20, min_objects=1))[0]
    load_image(sample.images[0], where="scene").save(folder / "a.png")
    rows = [{"image": "a.png", "question": "what?", "answer": "red"} for _ in range(4)]
    rows += [{"image": "gone.png", "question": "what?", "answer": "red"}] * broken
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_data(folder: Path, *, broken: int) -> tuple[dict[str, Any], list[str]]:
    """The record of a `data` stage over files, and what was said."""
    rows = write_rows(folder, broken=broken)
    file = folder / "p.yaml"
    file.write_text(
        "stages:\n  data:\n    uses: data\n    recipe: sft\n    set:\n"
        f"      data.train: {{type: jsonl, path: '{rows}'}}\n"
        "      data.eval.scenes: 2\n    gates: {max: {broken: 0}}\n"
    )
    plan = make_plan(read_pipeline(file), overrides=[f"run.root={folder}/runs"])
    said: list[str] = []
    runner = Runner(
        plan, StopRequest(), say=said.append, progress=lambda *_: None, console=Console(quiet=True)
    )
    try:
        run_serially(runner)
    finally:
        record = runner.records["data"]
    return dict(record.metrics), said


def test_data_is_counted_and_its_report_kept(tmp_path: Path) -> None:
    metrics, _ = run_data(tmp_path, broken=0)
    assert (metrics["rows"], metrics["eval_rows"], metrics["broken"]) == (4, 8, 0)
    assert 0 < metrics["blind"] <= 1
    report = json.loads(next((tmp_path / "runs" / "p").glob("data-*/data.json")).read_text())
    assert report["train"]["ok"] and report["eval"]["rows"] == 8


def test_a_broken_row_is_named_and_closes_the_gate(tmp_path: Path) -> None:
    with pytest.raises(GateClosed, match="broken"):
        run_data(tmp_path, broken=1)
    report = json.loads(next((tmp_path / "runs" / "p").glob("data-*/data.json")).read_text())
    (problem,) = report["train"]["problems"]
    assert problem["row"] == 5
