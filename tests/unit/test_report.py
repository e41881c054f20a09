"""The report: self-contained, escaped, honest about what is missing; and `look`."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.generate.scenes import SceneSource
from saccade.data.images import load_image
from saccade.evaluation.compare import compare_run
from saccade.evaluation.run import evaluate_run
from saccade.microscope.look import look
from saccade.microscope.report import ReportData, choose, commands, page, write_report
from saccade.microscope.sections import verdicts
from tests.report_example import comparison, explanation
from tests.scored_run import make_run

VOID = {"meta", "img", "source", "path", "br"}


class Checker(HTMLParser):
    """Collects addresses, pictures without a description, and tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.undescribed: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "img" and "alt" not in found:
            self.undescribed.append(str(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert checker.undescribed == []
    assert len(checker.ids) == len(set(checker.ids))
    outside = [a for a in checker.addresses if not a.startswith(("data:", "#"))]
    assert outside == []
    assert "url(http" not in html
    targets = {a[1:] for a in checker.addresses if a.startswith("#")}
    assert targets <= set(checker.ids)
    return checker


def test_a_run_with_nothing_but_a_configuration_gets_a_page_that_says_so() -> None:
    html = page(ReportData(name="new", path="runs/new", config=Config(), done=None))
    check(html)
    assert "UNFINISHED" in html
    assert "saccade eval runs/new" in html
    assert "saccade compare runs/new" in html


def test_text_from_data_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    data = ReportData(
        name=evil, path="runs/x", config=Config(), done={"target_step": 3},
        events=[{"type": "warning", "time": 1.0, "message": evil}],
        right=[explanation(evil)], wrong=[explanation(evil, correct=False)],
    )  # fmt: skip
    html = page(data)
    check(html)
    assert evil not in html
    assert "&lt;script&gt;" in html


def test_the_verdict_claims_only_what_the_interval_carries() -> None:
    result = comparison()
    (found,) = verdicts(result)
    assert found.standing == "ahead"
    assert "Ahead of the best other selector, resized image at 50.0%" in found.sentences[0]
    assert "at the same operations it may keep" in found.sentences[1]
    for row in result["rows"]:
        if row["difference"]:
            row["difference"] = {"mean": 0.01, "low": -0.02, "high": 0.04, "clear": False}
    (unclear,) = verdicts(result)
    assert unclear.standing == "unclear"
    assert "Not clearly apart" in unclear.sentences[0]
    assert "no clear difference" in unclear.sentences[1]


def test_samples_are_drawn_by_seed_with_kinds_in_turn() -> None:
    pool = [replace(explanation().selected, id=f"q{i}", kind=f"kind{i % 3}") for i in range(30)]
    chosen = choose(pool, correct=True, count=6, seed=0)
    assert chosen == choose(list(reversed(pool)), correct=True, count=6, seed=0)
    assert chosen != choose(pool, correct=True, count=6, seed=1)
    assert sorted(p.kind for p in chosen) == ["kind0", "kind0", "kind1", "kind1", "kind2", "kind2"]
    assert choose(pool, correct=False, count=6, seed=0) == []


def test_the_commands_that_made_the_run_are_repeated() -> None:
    data = ReportData(
        name="x", path="runs/my run", config=Config(), done=None,
        provenance={"argv": ["/usr/bin/saccade", "train", "relevance", "run.name=my run"]},
    )  # fmt: skip
    assert commands(data)[0] == "saccade train relevance 'run.name=my run'"
    assert commands(data)[1] == "saccade eval 'runs/my run'"


def test_a_finished_run_gets_a_whole_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_run(run)
    compare_run(run)
    written = write_report(run, samples_each=2)
    html = written.read_text()
    checker = check(html)
    assert {
        "comparison",
        "samples",
        "accuracy",
        "training",
        "timeline",
        "limits",
        "provenance",
    } <= set(checker.ids)
    assert "DONE" in html
    assert "a &lt;warning&gt; &amp; more" in html
    assert html.count('class="card"') == 2
    assert re.search(r"Heat map of participation", html)
    assert (run.figures / "loss.png").is_file()


def test_a_run_whose_weights_are_gone_still_gets_its_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_run(run)
    (run.path / "model" / "relevance.json").unlink()
    html = write_report(run).read_text()
    check(html)
    assert "No samples are shown" in html


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    run = make_run(tmp_path)
    source = run.config().data.eval
    sample = SceneSource(source)[0]  # type: ignore[arg-type]
    path = tmp_path / "scene.png"
    load_image(sample.images[0], where="test").save(path)
    return path


def test_looking_with_a_run_tells_answer_counts_and_times(picture: Path, tmp_path: Path) -> None:
    from saccade.training.rundir import RunDir

    run = RunDir.open(tmp_path / "runs" / "toy")
    seen = look(picture, "which digit is on the heart?", run=run, out=tmp_path / "look.png")
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < seen["kept"] < seen["full"]
    assert seen["warnings"] == []
    assert set(seen["tensions"]) == {"compress", "explore", "diversify"}
    assert seen["milliseconds"]["selector"] > 0
    assert seen["milliseconds_from_all"]["prefill"] > 0


def test_looking_without_a_run_warns_that_the_selector_is_untrained(
    picture: Path, tmp_path: Path
) -> None:
    from saccade.training.rundir import RunDir

    config = RunDir.open(tmp_path / "runs" / "toy").config()
    seen = look(picture, "what color?", config=config, out=tmp_path / "look.png")
    assert "untrained" in seen["warnings"][0]


def test_looking_at_nothing_is_the_users_mistake(tmp_path: Path, picture: Path) -> None:
    with pytest.raises(InputError, match="no such image"):
        look(tmp_path / "none.png", "what?", out=tmp_path / "out.png")
    with pytest.raises(InputError, match="question is empty"):
        look(picture, "  ", out=tmp_path / "out.png")
