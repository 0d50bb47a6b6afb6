"""The one player: prompts, masks, late rewards, outer limits, and that nothing else plays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_tools import word_task
from gymnasium.vector import AutoresetMode, VectorWrapper
from house_tools import HOUSE

from textgym import sampling
from textgym.parts import kept_until_done
from textgym.play import Turn, check_env, play_batch, reset_groups
from textgym.prompts import prompt_set
from textgym.rewards import RewardError, RunningNorm, Weighted
from textgym.rewards.scorer import scorers_restored
from textgym.sampling import play
from textgym.task import Task, make_reference
from textgym.vector import TokenVectorEnv, batch_env

A, STOP = 0, 4  # of the six words


def script(*rows: list[int]) -> Any:
    """Return what chooses the t-th token of each row's list."""
    return lambda turn: np.array([rows[row][turn.time] for row in turn.rows])


@pytest.mark.long
def test_nothing_else_steps_an_environment_to_the_end_of_its_episodes() -> None:
    found = {
        name
        for name, path in HOUSE.modules().items()
        if HOUSE.players(HOUSE.ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == {"textgym.play", "textgym_benchmarks.speed"}  # the latter times bare steps


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_every_reward_is_that_of_its_rows_last_action(wrapped: bool, together: bool) -> None:
    task = word_task(gamma=0.5)
    env: Any = TokenVectorEnv(task, 3, autoreset_mode=AutoresetMode.DISABLED, score_together=together)
    env = VectorWrapper(env) if wrapped else env
    played = play_batch(env, env.reset(seed=0)[0], script([A, STOP], [A, A, A, STOP], [A, A, STOP]))
    assert played.rows.tolist() == [0, 1, 2, 0, 1, 2, 1, 2, 1]
    assert played.times.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert played.actions.tolist() == [A, A, A, STOP, A, A, A, STOP, STOP]
    assert played.rewards.tolist() == [0, 0, 0, 1, 0, 0, 0, 2, 3]
    assert played.returns(0.5).tolist() == [1 / 2, 3 / 8, 2 / 4]
    assert played.lengths.tolist() == [2, 4, 3]
    assert played.final.finish_reasons.tolist() == ["stop"] * 3
    assert played.final.terms["lower"].tolist() == [1, 3, 2]
    assert [part.tolist() for part in played.by_time(played.rows)] == [[0, 1, 2], [0, 1, 2], [1, 2], [1]]
    assert not played.truncated.any()


def test_the_reward_of_a_bare_environment_is_asked_once() -> None:
    calls = []

    def counted(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(prompts))
        return [1.0] * len(prompts)

    env = TokenVectorEnv(word_task(reward=counted), 2, autoreset_mode=AutoresetMode.DISABLED)
    play_batch(env, env.reset(seed=0)[0], script([STOP], [A, STOP]))
    assert calls == [2]
    assert not env.score_together


def test_rows_that_are_not_to_run_are_left_alone() -> None:
    env = batch_env(word_task(), 2, "train")
    turns = []

    def choose(turn: Turn) -> Any:
        turns.append((turn.rows.tolist(), turn.seen()["input_ids"].shape[0]))
        return np.full(len(turn.rows), STOP)

    env.reset(seed=0)
    states = env.get_states()
    states[0] = replace(states[0], completion=(STOP,), finish_reason="stop")
    played = play_batch(env, env.set_states(states), choose, running=np.array([False, True]))
    assert turns == [([1], 1)]
    assert played.lengths.tolist() == [0, 1]
    assert played.final.finish_reasons.tolist() == ["", "stop"]


class Limited(TokenVectorEnv):
    """Stop row 0 after one token; the environment below goes on writing in it."""

    def reset(self, **options: Any) -> Any:
        self.taken = 0
        return super().reset(**options)

    def step(self, actions: Any) -> Any:
        observation, rewards, ended, _, infos = super().step(actions)
        self.taken += 1
        return observation, rewards, ended, np.array([self.taken == 1, False]) & ~ended, infos


def test_an_outer_limit_is_told_at_once_with_the_masks_of_the_states_there() -> None:
    task = word_task()
    allowed = task.vocabulary.allowed
    task = replace(task, mask=lambda states: np.repeat(allowed[None], len(states), axis=0))
    env = Limited(task, 2, autoreset_mode=AutoresetMode.DISABLED)
    told: list[Turn] = []
    played = play_batch(env, env.reset(seed=0)[0], script([A], [A, A, A, STOP]), at_limit=told.append)
    (turn,) = told
    assert (turn.time, turn.rows.tolist(), turn.running.tolist()) == (1, [0], [True, False])
    assert turn.masks is not None
    assert turn.masks.tolist() == [allowed.tolist()]
    assert turn.seen()["attention_mask"].sum() == turn.observation["attention_mask"][0].sum()
    assert played.truncated.tolist() == [True, False]
    assert played.lengths.tolist() == [1, 4]
    assert played.rewards.tolist() == [0, 0, 0, 0, 3]  # the text that went on in row 0 is not the policy's
    assert played.final.finish_reasons.tolist() == ["", "stop"]


def test_rows_of_a_group_answer_the_same_prompt() -> None:
    env = batch_env(word_task(), 6, "train")
    alone, shared = reset_groups(env, 3)[1]["prompt_index"], reset_groups(env, 3, 3)[1]["prompt_index"]
    assert shared.tolist() == np.repeat(alone[::3], 3).tolist()


def test_environments_that_reset_by_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="autoreset_mode=DISABLED"):
        check_env(TokenVectorEnv(word_task(), 2))
    with pytest.raises(ValueError, match="env=None"):
        check_env(None)


def test_a_scorer_is_restored_however_its_block_is_left() -> None:
    def pays(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float("nan") if "b" in text else float(len(text)) for text in completions]

    task = word_task(reward=RunningNorm(pays))
    task.scorer.score(["x", "x"], ["a", "aaa"])
    before = task.scorer.state_dict()
    with pytest.raises(RewardError), scorers_restored(task.scorer, None):
        task.scorer.score(["x", "x"], ["aaaaaa", "b"])
    assert task.scorer.state_dict() == before
    with scorers_restored(task.scorer):
        task.scorer.score(["x"], ["aaaaaa"])
        assert task.scorer.state_dict() != before
    assert task.scorer.state_dict() == before
    with pytest.raises(RewardError):  # a reward that fails while a policy is looked at
        play(make_reference(task), task, per_prompt=64)
    assert task.scorer.state_dict() == before


class Held:
    """The task's reference, of which so many rows can be held; remembers how many it was asked for."""

    def __init__(self, task: Any, most: int) -> None:
        self._reference, self._most = make_reference(task), most
        self.rows: set[int] = set()
        self.asked: list[int] = []
        self.forgot = 0

    def log_probs(self, observation: Any) -> Any:
        self.rows.add(len(observation["input_ids"]))
        return self._reference.log_probs(observation)

    def rows_at_once(self, tokens: int) -> int:
        self.asked.append(tokens)
        return self._most

    def forget(self) -> None:
        self.forgot += 1


def same_episodes(one: Any, other: Any) -> bool:
    def same(a: Any, b: Any) -> bool:
        return bool(np.array_equal(a, b) or np.allclose(a, b, rtol=0, atol=0, equal_nan=True))

    return all(
        same(getattr(one, name), getattr(other, name))
        for name in ("returns", "kl", "entropy", "lengths", "stopped", "completions", "tokens", "log_probs")
    )


@pytest.mark.parametrize("several", [False, True])
def test_parts_of_a_block_draw_what_the_whole_draws(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = word_task()
    reference = make_reference(task)
    monkeypatch.setattr(sampling, "_BLOCK", 40)

    def played(policy: Any) -> Any:
        others = (reference,) if several else ()
        return play(policy, task, per_prompt=48, seed=5, reference=reference, others=others)

    whole = played(reference)
    assert len(set(whole.lengths.ravel().tolist())) > 2  # so parts take different numbers of steps
    few = Held(task, 7)
    assert same_episodes(played(few), whole)
    # Blocks of 40 rows are six parts of 7 rows or fewer; what is left of 48 or 96 a prompt is no smaller.
    assert max(few.rows) == 7
    assert set(few.asked) == {task.max_prompt_tokens + task.max_new_tokens}
    assert few.forgot == 1
    monkeypatch.setattr(sampling, "_AT_ONCE", 5 * task.vocabulary.size * (2 if several else 1))
    fewer = Held(task, 7)
    assert same_episodes(played(fewer), whole)
    assert max(fewer.rows) == 5


class Breaks(Held):
    """The same, and it is killed at its `last` call. It may be biased."""

    def __init__(self, task: Any, last: int, bias: float = 0.0) -> None:
        super().__init__(task, 7)
        self.calls, self._last, self._bias = 0, last, bias

    def log_probs(self, observation: Any) -> Any:
        self.calls += 1
        if self.calls == self._last:
            raise KeyboardInterrupt
        return super().log_probs(observation) + self._bias * np.arange(6.0)


@pytest.mark.filterwarnings("ignore:reward 'pays' is nan")
@pytest.mark.parametrize("several", [False, True])
def test_a_sampling_that_was_broken_off_goes_on_to_the_same_bits(
    several: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pays(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        return [None if "b" in text else float("nan" if "c" in text else len(text)) for text in completions]

    task = word_task(reward=Weighted([pays, "length"]), on_error="skip")
    reference = make_reference(task)
    monkeypatch.setattr(sampling, "_BLOCK", 40)

    def played(policy: Any, keep: Path | None = None) -> Any:
        others = (reference,) if several else ()
        return play(policy, task, per_prompt=48, seed=5, reference=reference, others=others, keep=keep)

    whole, full = Breaks(task, 0), tmp_path / "full"
    expected = played(whole)
    assert expected.failures  # there is something of each kind to keep
    assert same_episodes(played(Breaks(task, 0), full), expected)
    read = Breaks(task, 0)
    assert same_episodes(played(read, full), expected)
    assert read.calls < whole.calls / 10  # all of it was there
    (full / "mine.txt").touch()
    (full / f".{next(full.iterdir()).name}.99").touch()  # of a process that was killed
    with kept_until_done(full):
        pass
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    with pytest.raises(KeyboardInterrupt), kept_until_done(tmp_path / "kept"):
        played(Breaks(task, whole.calls - 1), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir())
    with kept_until_done(tmp_path / "kept"):
        pass
    assert not (tmp_path / "kept").exists()
    for last in (2, whole.calls // 2, whole.calls // 4):
        with pytest.raises(KeyboardInterrupt):
            played(Breaks(task, last), tmp_path / "kept")
        assert (tmp_path / "kept").exists() == (last > 2)
    again = Breaks(task, 0)
    found = played(again, tmp_path / "kept")
    assert same_episodes(found, expected)
    assert (found.failures, found.answer_tokens) == (expected.failures, 0.0)
    assert list(found.terms) == list(expected.terms)
    assert again.calls <= whole.calls * 3 / 4
    # What another policy or another call has kept is not read.
    biased = [played(Breaks(task, 0, bias=0.5), keep) for keep in (None, tmp_path / "kept")]
    assert same_episodes(*biased)
    assert not same_episodes(biased[0], expected)


@pytest.mark.parametrize("change", ["prompt", "column", "roles"])
def test_what_another_sampling_of_the_same_folder_has_kept_is_not_read(change: str, tmp_path: Path) -> None:
    def pays(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(prompt + answer == "ba") for prompt, answer in zip(prompts, columns["answer"], strict=True)]

    def task(prompt: str, answer: str) -> Task:  # whose last prompt alone differs
        split = prompt_set(["a", prompt], {"answer": ["a", answer]})
        return word_task(reward=pays, prompts={"train": split, "eval": split})

    before, now = task("c" if change == "prompt" else "b", "b" if change == "column" else "a"), task("b", "a")
    reference = make_reference(now)
    others = (reference,) if change == "roles" else ()
    play(reference, before, per_prompt=16 // (1 + len(others)), others=others, keep=tmp_path)
    found = play(reference, now, per_prompt=16, reference=reference if others else None, keep=tmp_path)
    assert found.returns.mean(1).tolist() == [0.0, 1.0]
    assert found.log_probs.shape == (2, 16, 0)


class Acts(Held):
    """It only acts."""

    def log_probs(self, observation: Any) -> Any:
        return None

    def act(self, observation: Any, deterministic: bool = False) -> Any:
        self.asked.append(1)
        if len(self.asked) > 12:
            raise KeyboardInterrupt
        return np.full(len(observation["input_ids"]), A)


class Searches(Breaks):
    """It searches before it acts."""

    plans = True

    def edge_log_probs(self, tree: Any, log_reference: Any) -> None:
        return None


@pytest.mark.parametrize("case", ["acts", "searches", "learns", "plain"])
def test_what_cannot_go_on_to_the_same_bits_is_not_kept(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sampling, "_BLOCK", 8)
    task = word_task(**({"reward": RunningNorm("length")} if case == "learns" else {}))
    policy = Acts(task, 8) if case == "acts" else (Searches if case == "searches" else Breaks)(task, 12)
    with pytest.raises(KeyboardInterrupt):
        play(policy, task, per_prompt=32, keep=tmp_path / "kept")
    assert (tmp_path / "kept").exists() == (case == "plain")


@pytest.mark.parametrize("learns", [False, True])
def test_a_reward_that_needs_a_whole_block_gets_it(learns: bool) -> None:
    sizes = []

    def pays(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        sizes.append(len(prompts))
        return [float(len(text)) for text in completions]

    if not learns:
        pays.pay = "together"  # type: ignore[attr-defined]
    task = word_task(reward=RunningNorm(pays) if learns else pays)
    assert not task.scorer.one_by_one
    policy = Held(task, 2)
    play(policy, task, per_prompt=8)
    assert policy.rows == set(sizes) == {8 * len(task.prompt_set("eval").texts)}


def test_whoever_chooses_is_told_who_wrote_what_although_the_environment_does_not_show_it() -> None:
    env = TokenVectorEnv(word_task(), 2, autoreset_mode=AutoresetMode.DISABLED)
    observation, _ = env.reset(seed=0)
    start = observation["attention_mask"].sum(1)
    seen = []

    def choose(turn: Turn) -> Any:
        seen.append(turn.seen()["segment_ids"])
        return np.array([[A, A], [STOP, A], [-1, STOP]][turn.time])[turn.rows]

    played = play_batch(env, observation, choose)
    assert [list(part.sum(1)) for part in seen] == [[0, 0], [1, 1], [2]]
    assert [int(part[-1].argmax()) for part in seen[1:]] == [start[1]] * 2
    assert "segment_ids" not in played.observation
    assert observation.keys() == env.observation_space.keys()
