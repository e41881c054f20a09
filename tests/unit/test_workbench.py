"""The microscope's engine and gate: what pictures are taken, what is answered, what is served."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

from saccade.config.errors import InputError
from saccade.data.samples import DataError
from saccade.evaluation.load import load_run
from saccade.microscope import app_parts as parts
from saccade.microscope.app_guard import Guard
from saccade.microscope.look import look
from saccade.microscope.quality import overlap
from saccade.microscope.workbench import LONGEST_QUESTION, Workbench, take_in
from saccade.models.relevance.baselines import ARMS
from tests.picture_files import black_png, plain_png
from tests.scored_run import make_run


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    run = make_run(tmp_path_factory.mktemp("bench"))
    run.figures.mkdir()
    (run.figures / "loss.png").write_bytes(plain_png())
    (run.figures / "damaged.png").write_bytes(plain_png()[:60])
    (run.figures / "outside.png").symlink_to("/etc/passwd")
    return Workbench(load_run(run), run=run)


def test_examples_are_held_out_pictures_and_the_runs_own_figures(bench: Workbench) -> None:
    examples = bench.examples()
    assert [one.name for one in examples] == ["held-out 1", "held-out 2", "held-out 3", "loss"]
    assert examples[0].known and not examples[-1].known


def test_a_known_question_brings_its_answer_cells_along(bench: Workbench) -> None:
    picture = bench.examples()[0]
    asked = bench.ask(picture, picture.known[0].question, share=0.5)
    assert asked.ours.view.answer_cells
    assert asked.ours.known
    assert sum(asked.ours.prediction.kept) < sum(asked.everything.prediction.kept)
    assert asked.ours.flops.language < asked.everything.flops.language
    assert asked.ours.flops.selector > 0 == asked.everything.flops.selector
    assert len(asked.ours.view.textures) == 13
    own = bench.ask(picture, "is it warm there?", share=0.5)
    assert not own.ours.known


def test_every_baseline_stands_beside_the_trained_selector(bench: Workbench) -> None:
    picture = bench.examples()[0]
    question = picture.known[0].question
    untrained = {name for name, arm in ARMS.items() if not arm.trained and name != "full"}
    assert untrained <= set(bench.baselines)
    assert "trained+mmr" in bench.baselines
    for name in bench.baselines:
        asked = bench.ask(picture, question, share=0.3, baseline=name)
        assert asked.baseline is not None and asked.baseline.arm == name
        for show in (parts.answers, parts.kept, parts.numbers):
            assert asked.baseline.title.split()[0] in show(asked)


@pytest.mark.parametrize("placement", ["pixels", "glance"])
def test_placements_before_the_tower_are_shown_like_any_other(
    tmp_path: Path, placement: str
) -> None:
    run = make_run(tmp_path, f"selector.placement={placement}")
    bench = Workbench(load_run(run), run=run)
    picture = bench.examples()[0]
    asked = bench.ask(picture, picture.known[0].question, share=0.05, baseline="grid")
    assert asked.baseline is not None
    assert asked.ours.flops.vision < asked.baseline.flops.vision
    coarse = asked.ours.view.kept - int(asked.ours.view.keep_HW.sum())
    assert (coarse > 0) == (placement == "glance")
    assert ("coarse tokens" in parts.kept(asked)) == (placement == "glance")


def test_a_second_question_is_compared_in_the_order_the_two_were_asked(bench: Workbench) -> None:
    picture = bench.examples()[0]
    first, second = "how many of them?", "what is near the edge?"
    asked = bench.ask(picture, second, share=0.3, other_question=first, other_came_first=True)
    assert asked.other is not None
    shared = overlap(asked.other.view, asked.ours.view)
    assert shared is not None
    page = parts.change(asked)
    assert page.index(parts.text(first)) < page.index(parts.text(second))
    assert f"only A keeps it ({shared.only_first})" in page


def test_the_budget_moves_without_encoding_the_picture_again(bench: Workbench) -> None:
    picture = bench.examples()[1]
    question = picture.known[0].question
    kept = [bench.ask(picture, question, share=s).ours.view.kept for s in (0.1, 0.5, 1.0)]
    assert (
        kept == sorted(kept) and kept[-1] == bench.ask(picture, question, share=1.0).ours.view.full
    )
    assert list(bench._encoded).count((picture.key, question)) == 1


@pytest.mark.parametrize(
    ("question", "message"),
    [("", "is empty"), ("  \n ", "is empty"), ("x" * (LONGEST_QUESTION + 1), "at most 500"),
     ("what <|image_pad|> is it?", "placeholder")],
)  # fmt: skip
def test_a_question_that_is_none_is_refused(bench: Workbench, question: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.ask(bench.examples()[0], question, share=0.25)


def test_budgets_and_baselines_out_of_range_are_refused(bench: Workbench) -> None:
    picture = bench.examples()[0]
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="budget"):
            bench.ask(picture, "why?", share=share)
    with pytest.raises(InputError, match="no baseline"):
        bench.ask(picture, "why?", share=0.5, baseline="../../etc/passwd")


@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000)], ids=["100 MP", "900 MP"])
def test_a_small_file_of_many_pixels_is_refused_before_it_unfolds(size: tuple[int, int]) -> None:
    content = black_png(*size)
    assert len(content) < 1_000_000
    start = time.process_time()
    with pytest.raises(DataError, match=f"{size[0]} x {size[1]}"):
        take_in(content, name="bomb.png")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "content", [b"just words", b"", plain_png()[:60], b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_what_is_not_a_picture_is_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        take_in(content, name="notes.png")


def test_a_large_picture_is_scaled_down_when_it_is_taken_in() -> None:
    assert take_in(black_png(4_000, 3_000), name="photo").image.size == (2309, 1732)
    assert take_in(plain_png(), name="small").image.size == (96, 64)


def test_words_of_people_and_data_are_only_text_in_the_page(bench: Workbench) -> None:
    picture = bench.examples()[0]
    question = "<script>alert(1)</script>\"'"
    asked = bench.ask(picture, question, share=0.3, other_question=question + "?")
    for show in (parts.answers, parts.change, parts.numbers):
        assert "<script" not in show(asked)
    assert "<img" not in parts.status("error", "<img src=x onerror=alert(1)>")


def test_only_files_of_the_apps_own_folder_pass_the_gate(tmp_path: Path) -> None:
    folder, outside = tmp_path / "own", tmp_path / "secret.txt"
    folder.mkdir()
    outside.write_text("secret")
    (folder / "link").symlink_to(outside)
    gate = Guard(None, folder=folder)
    assert gate.allows(f"/gradio_api/file={folder}/a/picture.webp")
    assert gate.allows("/gradio_api/queue/join") and gate.allows("/")
    refused = [
        "/etc/passwd", "../../etc/passwd", f"{folder}/../secret.txt", f"{folder}/link",
        str(outside), f"{tmp_path}/own-not/x", "http://example.org/x", "file:///etc/passwd", "",
        "x\0y", "~/.ssh",
    ]  # fmt: skip
    for target in refused:
        for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "//gradio_api//file="):
            assert not gate.allows(route + target), route + target
    assert not gate.allows("/gradio_api/proxy=http://example.org/x")


def test_a_borrowed_name_for_this_machine_is_refused(tmp_path: Path) -> None:
    gate = Guard(None, folder=tmp_path, local_only=True)
    for name in (b"127.0.0.1:7860", b"localhost", b"LocalHost:7860", b"[::1]:7860"):
        assert gate.knows([(b"host", name)])
    for name in (b"example.org:7860", b"127.0.0.1.example.org", b""):
        assert not gate.knows([(b"Host", name)])
    assert Guard(None, folder=tmp_path).knows([(b"host", b"example.org")])


def test_look_draws_and_tells_what_a_second_question_changes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    image, out = tmp_path / "photo.png", tmp_path / "seen.png"
    image.write_bytes(plain_png())
    plain = look(image, "what is it?", run=run, out=out)
    low = Image.open(out).height
    result = look(
        image, "what is it?", run=run, keep=0.3, versus="which digit?", textures=True, out=out
    )
    assert Image.open(out).height > low  # a strip for the difference, two for the textures
    assert "versus" not in plain
    assert (
        result["versus"]["overlap"]["both"] + result["versus"]["overlap"]["only_first"]
        == (result["kept"])
    )
    assert result["quality"]["answer_cell_recall"] is None
    assert 0 < result["quality"]["coverage_4x4"] <= 1
    assert set(result["decay"]) == {"information", "salience", "participation", "balance"}
    with pytest.raises(InputError, match="empty"):
        look(image, "what is it?", run=run, versus=" ", out=out)
