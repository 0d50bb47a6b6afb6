"""Arithmetic, Keywords, Format, Pattern and Json: what they ask, what they pay, and their masks."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from textgym.task import Task, make_task, task_entry
from textgym.vector import TokenVectorEnv

NAMES = ["Arithmetic", "Format", "Json", "Keywords", "Pattern"]


def paid(task: Task, split: str, prompt: str, answer: str) -> float:
    ids = task.vocabulary.codec.encode(answer)
    return float(task.judge(split, [task.prompt(prompt, split)], [ids]).total[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_splits_share_no_prompt_and_no_item(name: str) -> None:
    task = make_task(name)
    train, held_out = task.prompts["train"], task.prompts["eval"]
    assert task.family == task_entry(name).family == "verifiable"
    assert not set(train.texts) & set(held_out.texts)
    column = "words" if name == "Keywords" else "item"
    seen = {str(value) for value in train.columns[column]}
    assert not seen & {str(value) for value in held_out.columns[column]}
    assert task.gold is task.reward
    assert task.scorer is task.gold_scorer


@pytest.mark.parametrize("name", NAMES)
def test_another_reward_keeps_the_gold(name: str) -> None:
    task = make_task(name, reward={"name": "length", "target": 3})
    assert (task.reward.name, task.reward_name) == ("length", "length")
    assert task.gold.name != "length"


def test_arithmetic() -> None:
    task = make_task("Arithmetic")
    asked = "What is 7 plus 5?"
    answers = ["7 plus 5 is 12.", "12", "Maybe 11. No, 12!", "It is 12, not 11.", "7 plus 5", ""]
    assert [paid(task, "train", asked, answer) for answer in answers] == [1, 1, 1, 0, 0, 0]
    assert np.isnan(task.judge("train", [task.prompt("What is 70 plus 5?", "train")], [[5]]).terms["arithmetic"][0])


def test_keywords() -> None:
    task, share = make_task("Keywords"), make_task("Keywords", mode="share")
    asked = next(text for text in task.prompts["train"].texts if "fox" in text)
    food = asked.rstrip(".").split()[-1]
    for answer, all_of_them, some in [
        (f"The fox eats {food}.", 1, 1),
        ("The fox.", 0, 0.5),
        ("Foxes.", 0, 0),
    ]:
        assert paid(task, "train", asked, answer) == all_of_them
        assert paid(share, "train", asked, answer) == some


def test_format() -> None:
    task = make_task("Format")
    asked, right = task.prompts["train"].texts[0], task.prompts["train"].columns["answer"][0][0]
    answers = [
        f"Of course! The {right}. Hope that helps!",
        "Of course! Yes. Hope that helps!",
        f"Of course! {right}",
        "",
    ]
    assert [paid(task, "train", asked, a) for a in answers] == pytest.approx([1.0, 0.6, 0.15 + 0.4, 0.0])


def test_pattern() -> None:
    task = make_task("Pattern")
    asked = task.prompts["train"].texts[0]
    answers = [
        "The fox. Hope that helps!",
        "Hope that helps!",
        "The fox. Hope that helps! Yes.",
        "7. Have a nice day!",
    ]
    assert [paid(task, "train", asked, answer) for answer in answers] == [1, 0, 0, 1]
    assert paid(make_task("Pattern", pattern="fox", mode="search"), "train", asked, "A fox.") == 1
    with pytest.raises(ValueError, match="constrain=True: with mode='full' only"):
        make_task("Pattern", mode="search", constrain=True)


def test_json() -> None:
    task = make_task("Json")
    asked = "What is 7 plus 5?"
    answers = ['{"kind":"sum","numbers":2}', '{"kind":"sum","numbers":1}', '{"numbers": 2}', "[1]", "12"]
    assert [paid(task, "train", asked, answer) for answer in answers] == pytest.approx([1, 0.6, 0.44, 0.04, 0.04])
    # One's own prompts have no right values, unless they bring them.
    own = make_task("Json", schema={"type": "integer"}, prompts=["Say a number."])
    assert [paid(own, "eval", "Say a number.", answer) for answer in ("7", "[]", "x")] == [1.0, 0.2, 0.0]
    assert "value" not in make_task("Json", schema={"type": "integer"}).prompts["train"].columns


def test_json_with_a_file_of_prompts(tmp_path: Any) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"prompt": "A fox.", "value": {"animal": "fox"}}), encoding="utf-8")
    schema = {"type": "object", "properties": {"animal": {"type": "string"}}}
    task = make_task("Json", schema=schema, prompts=str(file))
    assert paid(task, "train", "A fox.", '{"animal":"fox"}') == 1.0
    assert paid(task, "train", "A fox.", '{"animal":"hen"}') == pytest.approx(0.2)
    for own, held in ((str(file), ["A hen."]), (["A hen."], str(file))):
        with pytest.raises(ValueError, match=r"^prompts: those of \w+ have the column 'value', those of \w+ do not"):
            make_task("Json", schema=schema, prompts=own, eval_prompts=held)


def test_a_schema_that_is_no_grammar_needs_mask_false() -> None:
    schema = {"type": "array", "uniqueItems": True}
    with pytest.raises(ValueError, match="cannot be made a grammar"):
        make_task("Json", schema=schema)
    assert make_task("Json", schema=schema, mask=False).mask is None
    for _ in range(3000):
        schema = {"allOf": [schema]}
    with pytest.raises(ValueError, match="schema: nested too deeply"):
        make_task("Json", schema=schema)
    for mask in ("maybe", 5, None):
        with pytest.raises(ValueError, match=f"mask={mask!r}: True or False is allowed"):
            make_task("Json", mask=mask)


@pytest.mark.parametrize(
    ("name", "options", "term"),
    [
        ("Json", {}, "schema/valid"),
        ("Json", {"schema": {"enum": ["\u00e9", 1, None]}}, "valid"),
        ("Format", {"constrain": True, "template": "<a>{x}"}, "format"),
        ("Pattern", {"constrain": True, "pattern": "[a-z]{1,9}, [0-9]+!"}, "pattern"),
    ],
)
def test_what_is_written_under_the_mask_and_ends_by_itself_is_right(
    name: str, options: dict[str, Any], term: str
) -> None:
    env = TokenVectorEnv(make_task(name, **options), 32)
    generator = np.random.default_rng(0)
    env.reset(seed=0)
    stop = env.task.vocabulary.stop_ids[0]
    found: list[float] = []
    for _ in range(200):
        masks = env.action_masks()
        # A mask says no more than what may come; the stop token is taken as soon as it may.
        actions = [stop if row[stop] else int(generator.choice(np.flatnonzero(row))) for row in masks]
        *_, infos = env.step(np.array(actions))
        if "completion" in infos:
            ended = infos["_completion"] & (infos["finish_reason"] == "stop")
            found += infos["reward_terms"][term][ended].tolist()
        if len(found) > 40:
            break
    assert len(found) > 40
    assert len(set(found)) == 1
    assert found[0] > 0


def test_json_survives_being_saved_as_a_spec() -> None:
    env = gym.make("textgym/Json-v0", schema={"const": 7})
    assert env.spec is not None
    again = gym.make(type(env.spec).from_json(env.spec.to_json()))
    again.reset(seed=0)
    masks = again.unwrapped.action_masks()  # type: ignore[attr-defined]
    assert [again.unwrapped.task.vocabulary.token_text(i) for i in np.flatnonzero(masks)] == ["7"]  # type: ignore[attr-defined]
