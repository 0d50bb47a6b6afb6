"""The splits of every task: train and eval are what they always were, tune has new prompts where there are any."""

from __future__ import annotations

import hashlib
import json
from typing import Any, get_args

import pytest
from cli_tools import run
from core_tools import word_task

from textgym import make_task
from textgym.env import TokenEnv
from textgym.prompts import PromptSet, Split, prompt_set
from textgym.task import Task, task_names

DIGESTS = {
    "Arithmetic": "72cd5de68c937adb",
    "Bandit": "15369b09dcb78b95",
    "BetaSweep": "e88fde12540069b0",
    "BigVocab": "438141ddf54bda54",
    "Brief": "a31a8428b209449d",
    "Calculator": "92f4edd44991c14f",
    "Clarify": "03ec5e2953c9193d",
    "Countdown": "9896accb38df3a0f",
    "Copy": "9c6d41605385ab21",
    "Deceptive": "195e9536bc9d2e12",
    "DeepSea": "b617cdb623a255ce",
    "Delayed": "d1f45d3f6ced77e3",
    "Distractor": "398b7c7c31dd605a",
    "Format": "ef79c6d2750df633",
    "Gsm": "a525965b245efbc4",
    "HHH": "765b308a33cc75ad",
    "Harmless": "0d592e12110c7021",
    "Helpful": "8c1b60537757e21c",
    "Honest": "55ae9527ea34056b",
    "Json": "56e1ddd717bfc47f",
    "Keywords": "946e1fa09ce6df99",
    "Lookup": "8cd0ab846b52a1ae",
    "NoRepeat": "a31a8428b209449d",
    "Noisy": "8b186dc04cf52be8",
    "Pattern": "9e277d416c6111e4",
    "Persuade": "c42d5e4c584e3503",
    "Recall": "a869ce679eae505b",
    "Reverse": "5d144369561a151b",
    "Scale": "15b42bfaca078a03",
    "Sentiment": "fef82a6ad5dc281e",
    "Stop": "db04b821d189a795",
    "Text": "0cc211588ca89783",
    "TwentyQuestions": "fcd02ebd6da4de3d",
    "TwoModes": "6d4b961f4ce110a7",
}
"""Of prompts, columns and weights of train and eval at every difficulty."""
REPEATED = {
    "Copy",
    "Reverse",
    "Recall",
    "Stop",
    "Text",
    "Bandit",
    "BetaSweep",
    "BigVocab",
    "Deceptive",
    "DeepSea",
}
REPEATED |= {"Delayed", "Noisy", "Scale", "TwoModes", "Clarify", "TwentyQuestions"}
REPEATED |= {"Calculator", "Lookup", "Persuade"}
"""Tasks that leave too few prompts over for a third split: what is new on tune is the seeds."""


def digest(prompts: PromptSet) -> str:
    columns = {name: list(values) for name, values in prompts.columns.items()}
    text = json.dumps([list(prompts.texts), columns], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode() + prompts.weights.astype("<f8").tobytes()).hexdigest()[:16]


def sizes(name: str) -> list[Task]:
    """The task as it is, and at the difficulties from 1 to 10 that it has."""
    found = [make_task(name)]
    for difficulty in range(1, 11):
        try:
            found.append(make_task(name, difficulty=difficulty))
        except (TypeError, ValueError):
            continue
    return found


def test_every_task_is_there() -> None:
    assert set(DIGESTS) == set(task_names())


@pytest.mark.parametrize("name", DIGESTS)
def test_train_and_eval_are_unchanged_to_the_last_bit(name: str) -> None:
    parts = [digest(task.prompt_set(split)) for task in sizes(name) for split in ("train", "eval")]
    assert hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_tune_has_new_prompts_where_there_are_any(name: str) -> None:
    for size, task in enumerate(sizes(name)):
        train, held_out, tune = (set(task.prompt_set(split).texts) for split in ("train", "eval", "tune"))
        assert tune.isdisjoint(train | held_out) or tune == held_out
        if not size:
            assert (tune == held_out) == (name in REPEATED)
        assert len(tune) >= len(held_out)
        assert set(task.prompt_set("tune").columns) == set(task.prompt_set("eval").columns)
        assert max(len(prompt.ids) for prompt in task.encoded("tune")) <= task.max_prompt_tokens


def test_tune_asks_about_what_is_held_out_in_phrasings_of_train() -> None:
    task = make_task("Arithmetic")
    assert task.prompt_set("tune").texts[:4] == (
        "What is 1 plus 1?",
        "How much is 1 plus 1?",
        "Tell me what 1 plus 1 is.",
        "Do you know what 1 plus 1 is?",
    )
    assert task.prompt_set("tune").columns["answer"][:4] == ("2",) * 4
    asked = {split: set(task.prompt_set(split).columns["item"]) for split in get_args(Split)}
    assert asked["tune"] == asked["eval"]


def test_a_task_of_two_splits_goes_on_working() -> None:
    task = word_task()
    assert set(task.prompts) == {"train", "eval"}
    with pytest.raises(ValueError, match="split 'tune': not one of eval, train"):
        TokenEnv(task, split="tune")
    one = prompt_set(["a"])
    for wrong in ({"train": one}, {"train": one, "eval": one, "test": one}):
        with pytest.raises(ValueError, match="allowed are train and eval, or these and tune"):
            word_task(prompts=wrong)


def test_observations_have_room_for_the_longest_prompt_of_all_splits() -> None:
    columns = {"bonus": [0.0]}
    splits = {
        "train": prompt_set(["a"], columns),
        "eval": prompt_set(["a"], columns),
        "tune": prompt_set(["a b a"], columns),
    }
    task = word_task(prompts=splits)
    assert task.max_prompt_tokens == len(task.encoded("tune")[0].ids) == 3
    with pytest.raises(ValueError, match="tune prompt 0: 'a b a' has 3 tokens"):
        word_task(prompts=splits, max_prompt_tokens=1).encoded("tune")


@pytest.mark.parametrize("name", ["Text", "Json"])
def test_own_prompts_make_the_split_or_leave_it_out(name: str) -> None:
    own: dict[str, Any] = {} if name == "Text" else {"schema": {"type": "boolean"}}
    assert make_task(name, prompts=["a", "b"], **own).prompt_set("tune").texts == ("a", "b")
    both = {"prompts": ["a", "b"], "eval_prompts": ["c"], **own}
    assert set(make_task(name, **both).prompts) == {"train", "eval"}
    assert make_task(name, **both, tune_prompts=["d"]).prompt_set("tune").texts == ("d",)


@pytest.mark.slow
def test_commands_take_the_split(capsys: Any, tmp_path: Any) -> None:
    first = make_task("Distractor").prompt_set("tune").texts[0]
    code, out, err = run(capsys, "solve", "Distractor-v0", "--split", "tune", "--prompts", "1")
    assert (code, err) == (0, "")
    assert "tune prompts" in out
    assert first in out
    words = ("--agent", "reference", "--split", "tune", "--json")
    code, out, _ = run(capsys, "eval", "Distractor-v0", *words)
    assert (code, json.loads(out)["split"]) == (0, "tune")
    code, out, _ = run(capsys, "inspect", "Distractor-v0", *words, "--prompt-index", "0")
    (trace,) = json.loads(out)["traces"]
    assert (code, trace["split"], trace["prompt"]) == (0, "tune", first)
    recording = ("--episodes", "4", "--out", str(tmp_path / "tuned-v0"))
    code, out, _ = run(capsys, "record", "Distractor-v0", *words, *recording)
    assert (code, json.loads(out)["split"]) == (0, "tune")
    rankings = ("--split", "tune", "--out", str(tmp_path / "rankings.jsonl"), "--n", "2")
    code, out, _ = run(capsys, "preferences", "Arithmetic-v0", *rankings)
    assert (code, "tune prompts" in out) == (0, True)
    code, _, err = run(capsys, "solve", "Distractor-v0", "--split", "tine")
    assert code == 2
    assert "tune" in err


@pytest.mark.parametrize("name", ["Text", "Json"])
def test_prompts_to_choose_settings_on_may_be_the_longest(name):
    tune = ["Tell me a long story about it."]
    task = make_task(name, prompts=["a"], eval_prompts=["b"], tune_prompts=tune)
    assert task.max_prompt_tokens == len(task.vocabulary.encode_prompt(tune[0]))
    TokenEnv(task, split="tune").reset(seed=0)
