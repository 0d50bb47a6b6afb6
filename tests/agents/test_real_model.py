"""LM PPO on a real language model, found beside the checkout."""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig

from textgym.evaluate import evaluate
from textgym.lm.causal import CausalLM, load_causal_lm
from textgym.optimum import optimum_of

SHARED = Path(os.environ.get("TEXTGYM_SHARED", Path(__file__).parents[3] / "shared"))
MODEL = SHARED / "models" / "stories260K"
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is missing (set TEXTGYM_SHARED)")
PROMPTS = ["Once upon a time", "One day, a boy named Tim", "Lily had a red ball. She", "The sun was hot, and"]


def task_options(**options):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return {"prompts": PROMPTS, "tokenizer": tokenizer, "reference": str(MODEL), **options}


def make_env(count, **options):
    return gym.make_vec(
        "textgym/Text-v0",
        num_envs=count,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.DISABLED,
        **task_options(**options),
    )


@pytest.mark.slow
def test_it_writes_its_known_story_through_the_environment():
    env = make_env(1, max_new_tokens=40)
    observation, _ = env.reset(options={"prompt_index": 0})
    task = env.unwrapped.task
    policy = CausalLM(load_causal_lm(MODEL), task.vocabulary.allowed, device="cpu")
    done = np.array([False])
    while not done.all():
        observation, _, done, _, info = env.step(policy.log_probs(observation).argmax(1))
    want = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red"
    assert info["completion"][0].strip().startswith(want[:60])


@pytest.mark.slow
@pytest.mark.long
def test_ppo_raises_the_objective_significantly():
    env = make_env(64, max_new_tokens=16, reward={"name": "contains_all", "words": ["was", "very", "happy"]}, beta=0.05)
    task = env.unwrapped.task
    model = load_causal_lm(MODEL)
    agent = LMPPO(task, LMPPOConfig(batch=64, minibatches=2, epochs=2, device="cpu"), model=model)
    reference = CausalLM(model, task.vocabulary.allowed, device="cpu")
    before = evaluate(agent, task, reference, per_prompt=64)
    agent.learn(env, 64 * 30)
    after = evaluate(agent, task, reference, per_prompt=64)
    assert after.objective.low > before.objective.high + 0.1
    assert after.optimality is None  # too few of the reference's answers are good ones to know J*
    assert after.kl.mean > 0


@pytest.mark.slow
@pytest.mark.long
def test_a_reward_of_one_s_own_is_learned_with_the_settings_as_they_come():
    reward = {
        "name": "weighted",
        "rewards": {
            "words": {"name": "keywords", "words": ["friend", "happy", "garden"]},
            "ending": {"name": "pattern", "pattern": r"(?s).*[.!]"},
        },
        "weights": {"words": 0.8, "ending": 0.2},
    }
    gains = []
    for seed in range(5):
        env = make_env(256, max_new_tokens=48, reward=reward, beta=0.05)
        task = env.unwrapped.task
        agent = LMPPO(task, LMPPOConfig(seed=seed, device="cpu"))
        none = optimum_of(task, per_prompt=0)
        before = evaluate(agent, task, optimum=none, per_prompt=64, seed=seed)
        agent.learn(env, 4096)
        after = evaluate(agent, task, optimum=none, per_prompt=64, seed=seed)
        gains.append(after.objective.mean - before.objective.mean)
    print([round(gain, 3) for gain in gains])
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    assert np.mean(gains) - 2.776 * error > 0  # Student's t, 4 degrees of freedom
