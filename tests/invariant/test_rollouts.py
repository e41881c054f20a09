"""Rollouts are exact: sharing, padding, holes and dropped rows change no number and no token.

Everything is held against one episode alone through the base's own forward pass. Scripts put words
into the policy's mouth where a random base would hardly say them; the numbers are still its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.grounding.dialogue import Dialogue
from saccade.grounding.episodes import Episode, Task
from saccade.grounding.messages import write_call
from saccade.grounding.rollouts import _Stage, roll
from tests.dialogue_example import alone, dialogue, packed, task
from tests.tiny_models import older_backbone, random_backbone

TOLERANCE = 1e-4
ZOOM = write_call("zoom", '{"box": [100, 200, 700, 800]}')
CLOSER = write_call("zoom", '{"box": [0, 0, 500, 500]}')
ANSWER = "[400, 300, 600, 500]"
SCRIPTS: dict[str, tuple[list[str], str, list[bool]]] = {
    "at once": ([ANSWER], "answered", []),
    "one look": ([ZOOM, ANSWER], "answered", [True]),
    "two looks": ([ZOOM, CLOSER, ANSWER], "answered", [True, True]),
    "a look too many": ([ZOOM, CLOSER, ZOOM, ANSWER], "answered", [True, True, False]),
    "never stops looking": (
        [ZOOM, CLOSER, ZOOM, ZOOM], "too many turns", [True, True, False, False]
    ),
    "nonsense arguments": (
        [write_call("zoom", '{"box": ["a", 2, 3]}'), ANSWER], "answered", [False]
    ),
    "swapped corners, then a look": (
        [write_call("zoom", '{"box": [700, 200, 100, 800]}'), ZOOM, ANSWER],
        "answered", [False, True],
    ),
    "a tool there is not": ([write_call("wait", "{}"), ANSWER], "answered", [False]),
    "no JSON": (["<tool_call>\nzoom!\n</tool_call>", ANSWER], "answered", [False]),
    "two calls at once": ([ZOOM + ZOOM, ANSWER], "answered", [False, False]),
    "nothing": ([""], "unreadable", []),
    "words": (["I think it is over there"], "unreadable", []),
    "outside the picture": (["[400, 300, 600, 5000]"], "unreadable", []),
    "outside the crop": ([ZOOM, "[400, 300, 600, 5000]"], "unreadable", [True]),
    "talks on and on": (["star " * 300], "truncated", []),
    "talks on after a look": ([ZOOM, "star " * 300], "truncated", [True]),
}  # fmt: skip
MOST = 140


def script(monkeypatch: pytest.MonkeyPatch, talk: Dialogue, turns: Sequence[Sequence[str]]) -> None:
    """Let episode i write `turns[i]`, whatever the policy would have chosen."""
    lines = [
        torch.cat([talk._written(turn) for turn in said] + [torch.full((MOST,), talk.end)])
        for said in turns
    ]

    def choose(self: Any, logits_NV: Tensor, *, who_N: Tensor, count_N: Tensor) -> Tensor:
        pairs = zip(who_N.tolist(), count_N.tolist(), strict=True)
        return torch.stack([lines[who][count] for who, count in pairs])

    monkeypatch.setattr(_Stage, "_choose", choose)


def pages() -> list[Task]:
    """Different sizes and lengths, so that nothing lines up by itself."""
    return [
        task(1),
        task(2, width=96, height=176, words="the big green triangle over there"),
        task(3, width=64, height=64, words="it"),
    ]


def flat(groups: list[list[Episode]]) -> list[Episode]:
    return [one for group in groups for one in group]


def rolled(talk: Dialogue, tasks: Sequence[Task], *, group: int = 3, **more: Any) -> list[Episode]:
    seeds = [[1000 * number + index for index in range(group)] for number in range(len(tasks))]
    return flat(roll(talk, tasks, group=group, seeds=seeds, **{"temperature": 1.0, **more}))


def assert_exact(talk: Dialogue, episodes: Sequence[Episode]) -> None:
    """Log-probabilities and entropies are those of the base's forward pass and of packed rows."""
    for episode, learned in zip(episodes, packed(talk, [[one] for one in episodes]), strict=True):
        noted = episode.log_probs[episode.written], episode.entropies[episode.written]
        for name, got, want, again in zip(
            ("log_probs", "entropies"), noted, alone(talk, episode), learned, strict=True
        ):
            torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0, msg=name)
            torch.testing.assert_close(again, want, atol=TOLERANCE, rtol=0, msg=name)
        assert not episode.log_probs[~episode.written].any()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("base", [random_backbone, older_backbone])
def test_every_course_of_an_episode_in_one_batch_has_the_numbers_of_a_full_forward_pass(
    base: Any, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = dialogue(base, grpo={"max_tokens": MOST}, coordinates="0-1000")
    names = list(SCRIPTS)
    group = -(-len(names) // 3)
    told = [SCRIPTS[names[i % len(names)]] for i in range(3 * group)]
    script(monkeypatch, talk, [turns for turns, _, _ in told])
    episodes = rolled(talk, pages(), group=group, shared=shared)
    for episode, (turns, finish, calls) in zip(episodes, told, strict=True):
        assert episode.finish == finish
        assert (episode.answer is not None) == (finish == "answered")
        assert [call.ok for call in episode.screen.calls] == calls
        if finish != "truncated":
            assert episode.turns == turns
    assert_exact(talk, episodes)


def test_a_broken_call_is_answered_with_the_reason_and_the_episode_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk = dialogue(grpo={"max_tokens": MOST})
    script(monkeypatch, talk, [SCRIPTS["nonsense arguments"][0]])
    (episode,) = rolled(talk, [task()], group=1)
    told = talk.tokenizer.decode(episode.ids[~episode.written])
    assert "error: box is a list of 4 numbers" in told and "<tool_response>" in told
    assert episode.screen.calls[0].problem and not episode.screen.calls[0].ok
    assert len(episode.screen.views) == 1 and episode.finish == "answered"


def test_an_overlong_episode_is_cut_at_its_budget_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk = dialogue(grpo={"max_tokens": 40})
    first = len(talk._written(ZOOM))
    assert first < 40
    script(monkeypatch, talk, [["star " * 300], [ZOOM, "star " * 300], [ANSWER]])
    long, looked, fine = rolled(talk, [task()])
    assert [one.finish for one in (long, looked, fine)] == ["truncated", "truncated", "answered"]
    assert int(long.written.sum()) == int(looked.written.sum()) == 40
    assert len(looked.turns) == 2 and looked.answer is None
    assert len(looked.screen.views) == 2


def test_a_call_with_the_last_token_of_the_budget_ends_the_episode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk = dialogue()
    exact = len(talk._written(ZOOM))
    talk = dialogue(grpo={"max_tokens": exact})
    script(monkeypatch, talk, [[ZOOM, ANSWER]])
    (episode,) = rolled(talk, [task()], group=1)
    assert episode.finish == "truncated"
    assert episode.written.all() and len(episode.ids) == exact
    assert len(episode.screen.views) == 1, "nobody saw what a zoom would have shown"
    assert_exact(talk, [episode])


def test_sampled_episodes_are_the_same_shared_plain_and_alone() -> None:
    talk = dialogue(grpo={"max_tokens": 24})
    tasks = pages()
    shared, plain = rolled(talk, tasks), rolled(talk, tasks, shared=False)
    one_by_one = [
        roll(talk, [tasks[number]], group=1, seeds=[[1000 * number + index]])[0][0]
        for number in range(3)
        for index in range(3)
    ]
    for same in (plain, one_by_one):
        assert [one.ids.tolist() for one in same] == [one.ids.tolist() for one in shared]
    assert len({tuple(one.ids.tolist()) for one in shared}) == len(shared)
    assert_exact(talk, shared)


@pytest.mark.parametrize("temperature", [0.3, 5.0])
def test_numbers_are_those_at_temperature_one_and_placeholders_are_never_written(
    temperature: float,
) -> None:
    talk = dialogue(grpo={"max_tokens": 30})
    episodes = rolled(talk, pages(), group=4, temperature=temperature)
    assert_exact(talk, episodes)
    written = torch.cat([one.ids[one.written] for one in episodes])
    assert (talk.shut[written] == 0).all()


def test_sampling_follows_the_distribution() -> None:
    talk = dialogue()
    count, vocabulary = 20_000, len(talk.shut)
    stage = object.__new__(_Stage)
    stage.temperature, stage.last = 2.0, vocabulary - 1
    generator = torch.Generator().manual_seed(0)
    stage.chance_NT = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    logits = talk.shut + torch.randn(vocabulary, generator=generator)
    who = torch.arange(count)
    chosen = stage._choose(logits.expand(count, -1), who_N=who, count_N=torch.zeros_like(who))
    found = torch.bincount(chosen, minlength=vocabulary) / count
    want = (logits / 2).softmax(-1)
    assert (found[talk.shut < 0] == 0).all()
    assert (found - want).abs().max() < 4 * (want.max() / count).sqrt()
    edges = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    stage.chance_NT = edges
    ends = stage._choose(logits.expand(2, -1), who_N=torch.arange(2), count_N=torch.zeros(2).long())
    assert (talk.shut[ends] == 0).all()


def test_greedy_needs_no_seed_and_takes_the_likeliest() -> None:
    talk = dialogue(grpo={"max_tokens": 10})
    one = flat(roll(talk, pages(), group=1, seeds=[[1]] * 3, greedy=True))
    other = flat(roll(talk, pages(), group=1, seeds=[[2]] * 3, greedy=True))
    assert [a.ids.tolist() for a in one] == [b.ids.tolist() for b in other]
    assert_exact(talk, one)


def test_never_forbids_the_call_and_nothing_else() -> None:
    talk = dialogue(grpo={"max_tokens": 40})
    episodes = rolled(talk, pages(), group=4, look="never", temperature=3.0)
    assert not any((one.ids == talk.call).any() for one in episodes)
    assert all(one.forced == "never" for one in episodes)
    assert_exact(talk, episodes)


def test_always_begins_with_a_call_that_nobody_chose_and_allows_no_second() -> None:
    talk = dialogue(grpo={"max_tokens": 40})
    episodes = rolled(talk, pages(), group=4, look="always", temperature=3.0)
    for episode in episodes:
        assert episode.ids[0] == talk.call and not episode.written[0]
        assert not (episode.ids[1:] == talk.call).any()
        assert episode.turns[0].startswith("<tool_call>")
        assert episode.log_probs[0] == 0
    assert_exact(talk, episodes)


def test_always_goes_on_after_its_look(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = dialogue(grpo={"max_tokens": MOST})
    script(monkeypatch, talk, [[ZOOM, ANSWER]] * 2)
    for episode in rolled(talk, [task()], group=2, look="always"):
        assert (episode.finish, len(episode.screen.views)) == ("answered", 2)
        assert_exact(talk, [episode])


@pytest.mark.parametrize("look", ["free", "never"])
def test_a_call_that_is_spelled_letter_by_letter_is_none(
    look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = dialogue(grpo={"max_tokens": MOST})
    whole = talk._written
    spelled = lambda text: torch.cat([whole(text[:1])[:-1], whole(text[1:])])  # noqa: E731
    monkeypatch.setattr(talk, "_written", spelled)
    script(monkeypatch, talk, [[ZOOM, ANSWER]])
    (episode,) = rolled(talk, [task()], group=1, look=look)
    assert episode.turns == [ZOOM] and talk.call not in episode.ids
    assert (episode.finish, len(episode.screen.calls)) == ("unreadable", 0)


def test_the_shared_path_reads_every_screenshot_once(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = dialogue(grpo={"max_tokens": 4})
    tower, patches = talk.base.model.visual, []
    counted = tower.register_forward_hook(lambda _, given, __: patches.append(len(given[0])))
    tasks = pages()
    each = sum(len(talk.prompt(one).pixels_ND) for one in tasks)
    rolled(talk, tasks, group=4)
    assert sum(patches) == each
    patches.clear()
    rolled(talk, tasks, group=4, shared=False)
    assert sum(patches) == 4 * each
    counted.remove()


def test_wrong_seeds_are_refused_and_no_task_makes_no_episode() -> None:
    talk = dialogue()
    with pytest.raises(ValueError, match="one per episode"):
        roll(talk, [task()], group=2, seeds=[[1, 2, 3]])
    assert roll(talk, [], group=2, seeds=[]) == []
