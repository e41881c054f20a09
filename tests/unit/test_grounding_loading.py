"""Pages that are still loading, and their accessibility trees, on real generated pages.

Before a page has loaded `inspect` reads what is there then, `wait` shows the finished page, and
demonstrations wait first, so that a policy learns to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageChops

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import Config
from saccade.data.boxes import WHOLE, Box
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource, open_source
from saccade.evaluation.grounding import answer, usual_look
from saccade.grounding.dialogue import Dialogue
from saccade.grounding.episodes import Task, task_of
from saccade.grounding.messages import read_turn, system_text, write_call
from saccade.grounding.packed import NOBODY
from saccade.grounding.rollouts import roll
from saccade.models.backbone import load_backbone
from saccade.models.tools import tool_ready
from saccade.training.recipes.grounding_demos import PlacesPhase, WarmPhase
from saccade.training.rundir import RunDir
from tests.invariant.test_rollouts import assert_exact, script

pytestmark = pytest.mark.filterwarnings("ignore")
ALL = "grounding.tools=[zoom,inspect,wait]"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def settings(cache: Path, *words: str, share: float = 0.5) -> Config:
    shares = [f"data.{part}.loading_share={share}" for part in ("train", "eval")]
    places = [f"data.{part}.cache={cache}" for part in ("train", "eval")]
    return resolve("smoke/grounding", overrides=[
        *shares, *places, ALL, "training.threads=1", "model.max_pixels=3072",
        "grounding.zoom.pixels=3072", "grounding.grpo.max_tokens=140", *words,
    ]).config  # fmt: skip


def loading_sample(source: SampleSource, *, loading: bool = True) -> Sample:
    samples = map(source.__getitem__, range(len(source)))
    return next(one for one in samples if ("loading" in one.facts) == loading)


def loading_task(cache: Path, *, loading: bool = True) -> Task:
    return task_of(loading_sample(open_source(settings(cache).data.train), loading=loading))


def dialogue(config: Config) -> Dialogue:
    backbone = tool_ready(load_backbone(config.model))
    return Dialogue(backbone.model, backbone.processor, config=config)


def test_inspect_reads_what_is_there_before_and_after_the_page_has_loaded(cache: Path) -> None:
    task = loading_task(cache)
    assert task.loading is not None and task.box is not None and task.loading_tree
    screen = dialogue(settings(cache)).screen(task)
    everything = [0, 0, 1000, 1000]
    before = screen.inspect(everything)
    target = next(node["name"] for node in task.tree if Box(*node["box"]) == task.box)
    assert before.ok and "loading" in before.text and target not in before.text
    shown = screen.wait()
    assert shown.ok and shown.view is not None and shown.view.box == WHOLE
    assert not ImageChops.difference(shown.view.image, task.image).getbbox()
    around = screen.numbers(task.box)
    after = screen.inspect(around)
    assert after.ok and target in after.text and "progressbar" not in after.text
    left, top, right, bottom = screen.convention.numbers(task.box, size=screen.view.size)
    assert f"[{left}, {top}, {right}, {bottom}]" in after.text
    assert screen.wait().text == "nothing changed"


def test_a_crop_before_waiting_shows_the_loading_page_and_says_so(cache: Path) -> None:
    task = loading_task(cache)
    screen = dialogue(settings(cache, "grounding.zoom.calls=2")).screen(task)
    early = screen.zoom([0, 0, 500, 500]).view
    screen.wait()
    late = screen.zoom([0, 0, 500, 500]).view
    assert early is not None and late is not None
    assert [one.loading for one in screen.views] == [True, True, False, False]
    assert early.box == late.box
    assert ImageChops.difference(early.image, late.image).getbbox()
    plain = dialogue(settings(cache)).screen(loading_task(cache, loading=False))
    assert not plain.views[0].loading and plain.wait().text == "nothing changed"


def test_a_whole_episode_of_all_tools_has_the_numbers_of_a_full_forward_pass(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(cache)
    talk, task = dialogue(config), loading_task(cache)
    turns = [
        write_call("inspect", '{"box": [0, 0, 1000, 1000]}'), write_call("wait", "{}"),
        write_call("zoom", '{"box": [100, 200, 700, 800]}'), "[400, 300]",
    ]  # fmt: skip
    monkeypatch.setattr("tests.invariant.test_rollouts.MOST", 140)
    script(monkeypatch, talk, [turns, turns[1:]])
    episodes = roll(talk, [task], group=2, seeds=[[0, 1]])[0]
    assert [one.finish for one in episodes] == ["answered"] * 2
    assert [[call.ok for call in one.screen.calls] for one in episodes] == [[True] * 3, [True] * 2]
    assert [len(one.screen.views) for one in episodes] == [3, 3]
    assert_exact(talk, episodes)
    told = talk.tokenizer.decode(episodes[0].ids[~episodes[0].written])
    assert "progressbar" in told


def test_a_stored_episode_says_which_pictures_were_still_loading(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(cache)
    talk = dialogue(config)
    script(monkeypatch, talk, [[write_call("wait", "{}"), "[400, 300]"]])
    sample = loading_sample(open_source(config.data.train))
    (row,) = answer(talk, [sample], run=RunDir(tmp_path), look=usual_look(config), broken=[])
    assert [view["loading"] for view in row["views"]] == [True, False]
    assert row["zooms"] == 0 and [call["name"] for call in row["calls"]] == ["wait"]


def demonstrated(phase: Any, samples: list[Sample]) -> list[Any]:
    return [one for group in phase.demonstrations(samples) for one in group]


def test_demonstrations_wait_for_pages_that_load_and_for_no_others(cache: Path) -> None:
    phase = WarmPhase(settings(cache, "grounding.warm.zoom_share=1"))
    source = phase.train_source()
    for loading in (True, False):
        (episode,) = demonstrated(phase, [loading_sample(source, loading=loading)])
        calls = [call.name for call in episode.screen.calls]
        assert calls == (["wait", "zoom"] if loading else ["zoom"])
        assert episode.answer is not None and episode.task.box is not None
        assert episode.task.box.contains(*episode.answer.point)
        names = [read_turn(turn).call for turn in episode.turns]
        assert [call.name for call in names if call] == calls


def test_without_a_tool_to_wait_a_page_that_loads_cannot_be_demonstrated(cache: Path) -> None:
    phase = WarmPhase(settings(cache, "grounding.tools=[zoom]"))
    with pytest.raises(InputError, match=r"still loading[\s\S]*tools=\[zoom,wait\]"):
        phase.demonstrations([loading_sample(phase.train_source())])


def test_places_are_named_on_finished_pages(cache: Path) -> None:
    phase = PlacesPhase(settings(cache, "grounding.places.crop_share=0"))
    (episode,) = demonstrated(phase, [loading_sample(phase.train_source())])
    assert not episode.screen.calls and not episode.screen.views[0].loading


def test_cells_of_a_page_that_loads_hold_nothing_and_digits_point_at_the_finished_one(
    cache: Path,
) -> None:
    phase = WarmPhase(settings(cache, "grounding.warm.zoom_share=0", "grounding.warm.vision=true"))
    source = phase.train_source()
    batch = phase.collate([loading_sample(source)])
    first, second = (rows * columns for rows, columns in batch["looks"][:, 4:].tolist())
    colors = batch["cell_targets"]["color"]
    assert len(colors) == first + second
    assert not colors[:first].any() and colors[first:].any()
    (_, start, stop, episode, *_) = batch["looks"][1].tolist()
    assert episode != NOBODY and bool(batch["look_at"][:, start:stop].any(1).all())
    assert not batch["look_at"][:, :start].any()
    phase.loss(batch, step=0, denominator=(batch["labels"] != -100).sum())["loss"].backward()
    silent = [n for n, p in phase.model.named_parameters() if p.requires_grad
              and (p.grad is None or not p.grad.abs().sum())]  # fmt: skip
    assert not silent


def test_the_warm_phase_teaches_to_wait_for_pages_that_load_and_only_for_them(
    cache: Path,
) -> None:
    config = settings(
        cache, "data.train.screens=8", "data.train.targets=1", "grounding.warm.zoom_share=0",
        "grounding.look_loss=0", "grounding.cell_loss=0",
    )  # fmt: skip
    phase = WarmPhase(config)
    source = phase.train_source()
    samples = [source[position] for position in range(8)]
    waits = ["loading" in one.facts for one in samples]
    assert 2 <= sum(waits) <= len(waits) - 2
    batch = phase.collate(samples)
    tokens = (batch["labels"] != -100).sum()
    learned = [one for one in phase.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=3e-3)
    for step in range(100):
        optimizer.zero_grad()
        phase.loss(batch, step=step, denominator=tokens)["loss"].backward()
        optimizer.step()
    phase.base.eval()
    rolled = roll(phase.dialogue, [task_of(one) for one in samples], group=1,
                  seeds=[[0]] * len(samples), greedy=True)  # fmt: skip
    called = [[call.name for call in group[0].screen.calls if call.ok] for group in rolled]
    assert called == [["wait"] if loads else [] for loads in waits]


def test_who_may_wait_is_told_so() -> None:
    config = resolve("smoke/grounding", overrides=[ALL]).config.grounding
    assert "call wait first" in system_text(config)
    assert "wait" not in system_text(replace_tools(config))


def replace_tools(config: Any) -> Any:
    return config.model_copy(update={"tools": ["zoom"]})
