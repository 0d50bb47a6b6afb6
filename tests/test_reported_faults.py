"""Faults that people report of libraries for language models and reinforcement learning: none of them is here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import textgym
from textgym import TokenEnv, make_task
from textgym.grammar import GrammarMask, json_grammar
from textgym.rewards import make_reward
from textgym.state import Prompt, TokenState
from textgym.vocab import load_vocabulary
from textgym.world import MODEL_PATH

WORDS = {"prompts": ["a b c", "a"], "tokenizer": ["a", "b", "c", "."], "stop": ".", "reference": "uniform"}


@pytest.fixture(scope="module")
def may_end() -> Any:
    """Whether the mask of a JSON schema lets a text be written, byte after byte, and end."""
    vocabulary = load_vocabulary(None)
    byte = {piece: i for i, piece in reversed(list(enumerate(vocabulary.decoder.table))) if len(piece) == 1}

    def ends(schema: Any, text: str) -> bool:
        ids = [byte[bytes([part])] for part in text.encode()]
        states = [TokenState(Prompt("p", (1,), None), tuple(ids[:length])) for length in range(len(ids) + 1)]
        rows = GrammarMask(vocabulary, json_grammar(schema))(states)
        written = rows[np.arange(len(ids)), ids].all()
        return bool(written and rows[-1][vocabulary.stop_ids[0]])

    return ends


def paid(spec: Any, text: str) -> float:
    (value,) = make_reward(spec)(["p"], [text])
    return value


def test_an_empty_mask_names_its_task() -> None:
    task = make_task("Copy")
    env = TokenEnv(replace(task, mask=lambda states: np.zeros((len(states), task.vocabulary.size), bool)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="mask of task 'Copy': leaves no token at all"):
        env.action_masks()


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (json.dumps({"body": "see\n```ts\nlet x = {}\n```\n"}), 1.0),
        (' {"body": 1}\n', 1.0),
        ('```json\n{"body": 1}\n```', 0.0),
        ('{"body": 1}{"body": 1}', 0.0),
        ('{"body": 1,}', 0.0),
        ('{"body": NaN}', 0.0),
        ('{"body": 1, "body": 2}', 0.0),
    ],
)
def test_json_is_read_strictly_and_fences_inside_of_strings_are_text(text: str, right: float) -> None:
    spec = {"name": "json_schema", "schema": {"type": "object", "required": ["body"]}}
    assert paid(spec, text) == right


@pytest.mark.parametrize(
    ("schema", "text", "right"),
    [
        ({"type": "string", "maxLength": 2}, '"😀😀"', True),
        ({"type": "string", "minLength": 3}, '"😀😀"', False),
        ({"type": "string", "maxLength": 1}, '"😀😀"', False),
        ({"type": "string", "pattern": "^a+$", "maxLength": 2}, '"aaa"', False),
        ({"type": "array", "minItems": 1, "items": {"type": "null"}}, "[]", False),
    ],
)
def test_mask_and_reward_count_code_points(may_end: Any, schema: Any, text: str, right: bool) -> None:
    assert (paid({"name": "json_schema", "schema": schema}, text) == 1) == right
    assert may_end(schema, text) == right


@pytest.mark.parametrize("schema", [{"type": "string"}, {"const": "\x7f"}])
def test_a_character_that_json_writes_raw_can_be_written(may_end: Any, schema: Any) -> None:
    spellings = ['"\x7f"', '"\\u007f"']
    assert [paid({"name": "json_schema", "schema": schema}, text) for text in spellings] == [1, 1]
    assert any(may_end(schema, text) for text in spellings)


def test_emphasis_does_not_make_a_text_neutral() -> None:
    scores = [paid("sentiment", "This is so bad" + "!" * count) for count in range(7)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.3
    assert paid("sentiment", "Great💕💕") >= paid("sentiment", "Great")
    assert paid("sentiment", "this wasn't good that was good") > paid("sentiment", "this wasn't good")
    assert {paid("sentiment", text) for text in ("", "\n\n", "\0", "7 8 9")} == {0.5}


@pytest.mark.parametrize("partial", [0.0, 0.5])
@pytest.mark.parametrize("text", ["<t>a<x>b</x>", "<t>a</t><x>b", "a</t><x>b</x>", "<t></t><x>b</x>", "<t>a</t>", ""])
def test_a_tag_that_is_missing_costs_the_full_pay(text: str, partial: float) -> None:
    spec = {"name": "format", "template": "<t>{thought}</t><x>{answer}</x>", "partial": partial}
    assert paid(spec, text) < 1 if partial else paid(spec, text) == 0
    assert paid(spec, "<t>a\nb</t><x>c</x>") == 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("value", [0.1, 0.35, -7.7, 1e6 + 0.1])
def test_rounding_in_a_group_is_no_difference(value: float, dtype: Any) -> None:
    from textgym_agents.lm.critic_free import centred, leave_one_out, standardised

    equal, one_differs = np.full((3, 8), value, dtype), np.full((1, 8), 0.35, dtype)
    one_differs[0, 3] = 0.0
    for advantages in (centred, leave_one_out, standardised):
        assert np.abs(advantages(equal)).max() <= 1e-6 * max(abs(value), 1.0)
        assert np.abs(advantages(one_differs)).max() < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_without_a_difference_in_reward_nothing_moves(name: str) -> None:
    from textgym_agents import make_agent, make_env

    def same(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [0.1] * len(prompts)

    env = make_env("textgym/Text-v0", 16, **WORDS, reward=same, max_new_tokens=5, beta=0.0)
    agent = make_agent(name, env, batch=16, seed=0, device="cpu")
    observation, _ = env.reset(seed=1)
    before, rows = agent.log_probs(observation), []
    agent.learn(env, 48, rows.append)
    np.testing.assert_allclose(agent.log_probs(observation), before, atol=1e-6)
    assert all(np.isfinite(value) for row in rows for value in row.values() if value is not None)


@pytest.mark.slow
def test_logged_sums_leave_padding_out() -> None:
    from textgym_agents import make_agent, make_env

    found = []
    for width in (3, 40):
        env = make_env("textgym/Text-v0", 64, **WORDS, reward="length", max_new_tokens=6, max_prompt_tokens=width)
        agent = make_agent("lm-ppo", env, batch=64, seed=0, device="cpu")
        rows: list[dict[str, float]] = []
        agent.learn(env, 128, rows.append)
        found.append(rows)
    for narrow, wide in zip(*found, strict=True):
        for key in ("objective/kl", "objective/scores", "objective/entropy"):
            assert wide[key] == pytest.approx(narrow[key], rel=1e-4, abs=1e-6)
        assert 0 <= narrow["objective/entropy"] <= 6 * np.log(4)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_episode_statistics_are_those_of_sync_vector_env(mode: AutoresetMode) -> None:
    def episodes(env: Any) -> list[tuple[int, float]]:
        env = RecordEpisodeStatistics(env)
        env.reset(seed=3)
        generator, found = np.random.default_rng(0), []
        for _ in range(60):
            *_, infos = env.step(generator.integers(0, 4, 3))
            source = infos if "episode" in infos else infos.get("final_info", {})
            if "episode" in source:
                said, there = source["episode"], source["_episode"]
                found += list(zip(said["l"][there].tolist(), said["r"][there].tolist(), strict=True))
        return found

    native = episodes(gym.make_vec("textgym/Stop-v0", num_envs=3, autoreset_mode=mode))
    sync = gym.make_vec(
        "textgym/Stop-v0", num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )
    assert native == episodes(sync)
    assert len(native) > 10


@pytest.mark.long
def test_masks_come_from_other_processes() -> None:
    maskable = pytest.importorskip("sb3_contrib.common.maskable.utils")
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv

    env = make_vec_env("textgym:textgym/Stop-v0", n_envs=2, vec_env_cls=SubprocVecEnv)
    try:
        env.reset()
        assert maskable.is_masking_supported(env)
        masks = maskable.get_action_masks(env)
    finally:
        env.close()
    assert masks.dtype == bool
    assert masks.shape == (2, env.action_space.n)
    assert masks.any(1).all()


@pytest.mark.long
@pytest.mark.slow
def test_memory_does_not_grow_with_episodes() -> None:
    process = pytest.importorskip("psutil").Process()
    env = gym.make_vec("textgym/Json-v0", num_envs=64, max_new_tokens=4, reward="length")
    env.reset(seed=0)
    generator = np.random.default_rng(0)

    def play(steps: int) -> int:
        for _ in range(steps):
            env.unwrapped.action_masks()
            env.step(generator.integers(0, 1024, 64))
        return int(process.memory_info().rss)

    before = play(800)
    assert play(2400) - before < 20 * 2**20


@pytest.mark.slow
def test_a_model_in_shards_is_the_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from textgym.task import make_reference

    model = AutoModelForCausalLM.from_pretrained(str(MODEL_PATH))
    found = []
    for name, size in (("one", "5GB"), ("many", "100KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        AutoTokenizer.from_pretrained(str(MODEL_PATH)).save_pretrained(tmp_path / name)
        task = make_task("Helpful", reference=str(tmp_path / name), max_new_tokens=4)
        observation, _ = textgym.TokenVectorEnv(task, 4).reset(seed=0)
        found.append(make_reference(task).log_probs(observation))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["list"], ["solve", "Stop-v0", "--env", "difficulty=1"]])
def test_the_command_line_prints_where_the_terminal_is_ascii(arguments: list[str]) -> None:
    ascii_only = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", "from textgym.cli import main; main()", *arguments],
        env={**os.environ, **ascii_only, "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    done.stdout.decode("ascii")
