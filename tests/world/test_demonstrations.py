"""Demonstrations of the built-in world: whose prompts they answer, how well, and how often not so well."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from textgym.rewards import make_reward
from textgym.task import make_task
from textgym.world import MODEL_PATH
from textgym.world.demonstrations import CAREFUL, CARELESS, demonstrations, task_demonstrations
from textgym.world.facts import PERSONAS
from textgym.world.prompts import TASK_SHARES, prompts

every_task = pytest.mark.parametrize("name", TASK_SHARES)


def gold(name: str, rows: list[tuple[str, str, bool]]) -> np.ndarray:
    asked, answers, ended = zip(*rows, strict=True)
    rules = make_reward(f"{name.lower()}_rules")
    return np.array(rules(list(asked), list(answers), completion_ids=[[3] if end else [7] for end in ended]))


@every_task
def test_they_answer_training_prompts_by_the_shares(name: str) -> None:
    kinds = {prompt.text: prompt.kind for prompt in prompts(TASK_SHARES[name], "train")}
    asked = [kinds[prompt] for prompt, _, _ in task_demonstrations(name, 4000)]
    for kind, share in TASK_SHARES[name].items():
        assert asked.count(kind) / 4000 == pytest.approx(share, abs=0.03)  # 4 standard errors


@pytest.mark.slow
@every_task
def test_careful_labellers_are_right_and_careless_ones_are_not(name: str) -> None:
    careful = gold(name, task_demonstrations(name, 1000, mistakes=0.0))
    careless = gold(name, task_demonstrations(name, 1000, mistakes=1.0))
    usual = gold(name, task_demonstrations(name, 4000))
    assert careful.min() == pytest.approx(0.8)  # right, and at worst without courtesy
    assert careless.mean() < 0.4
    assert usual.mean() == pytest.approx(0.7 * careful.mean() + 0.3 * careless.mean(), abs=0.04)


@every_task
def test_they_fit_the_budget_of_the_task(name: str) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
    rows = task_demonstrations(name, 1000)
    assert all(ended for _, _, ended in rows)
    longest = max(len(encoded.ids) for encoded in tokenizer.encode_batch([text for _, text, _ in rows]))
    assert longest < make_task(name).max_new_tokens


def test_seeds_and_prefixes() -> None:
    rows = demonstrations({"fact": 1.0}, 50, seed=3)
    assert demonstrations({"fact": 1.0}, 80, seed=3)[:50] == rows
    assert demonstrations({"fact": 1.0}, 50, seed=4) != rows
    assert demonstrations({"fact": 1.0}, 0) == []


def test_the_labellers() -> None:
    for group in (CAREFUL, CARELESS):
        assert sum(labeller.share for labeller in group) == pytest.approx(1.0)
        assert all(set(labeller.right) == set(PERSONAS[0].right) for labeller in group)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"task 'Helpfull': not one of .* Did you mean 'Helpful'"):
        task_demonstrations("Helpfull", 1)
    with pytest.raises(ValueError, match="count=-1"):
        task_demonstrations("Helpful", -1)
    with pytest.raises(ValueError, match=r"mistakes=1\.5"):
        task_demonstrations("Helpful", 1, mistakes=1.5)
    with pytest.raises(ValueError, match="kind 'facts'"):
        demonstrations({"facts": 1.0}, 1)
