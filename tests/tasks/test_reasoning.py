"""Countdown and Gsm: the mask against all expressions, J* by hand, problems that are what they say, files of others."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from textgym import TokenEnv, make_task
from textgym.rewards.answers import evaluated, final_answer, results
from textgym.solver import solve
from textgym.tasks.reasoning import reachable


def legal(words: tuple[str, ...], numbers: list[int]) -> bool:
    """Whether an answer of Countdown with two numbers is complete, and its brackets stand around an operation."""
    text = "".join(words[:-1])
    if words[-1] != "=" or "=" in text or "((" in text or any(f"({n})" in text for n in numbers):
        return False
    found = evaluated(" ".join(words[:-1]))
    return found is not None and all(found[1][n] <= 1 for n in numbers)


@pytest.mark.slow
def test_the_mask_leaves_all_expressions_and_no_others() -> None:
    task = make_task("Countdown", difficulty=2)
    every = solve(task, split="eval").reference.trajectories
    numbers, target = (task.prompt_set("eval").columns[name][0] for name in ("numbers", "target"))
    own = np.flatnonzero(every.prompt == 0).tolist()
    ids = [every.tree.completions(int(every.length[i]), every.row[i : i + 1]).tolist()[0] for i in own]
    answers = [(*text.split(), "=") for text in task.vocabulary.decode(ids)]
    words = [*map(str, numbers), "+", "-", "*", "/", "(", ")", "="]
    wanted = {w for size in range(2, 7) for w in product(words, repeat=size) if legal(w, numbers)}
    assert len(answers) == len(set(answers))
    assert set(answers) == wanted
    paid = {answer for answer, value in zip(answers, every.returns[own], strict=True) if value == 1}
    assert paid == {w for w in wanted if evaluated(" ".join(w[:-1]))[0] == target}  # type: ignore[index]


@pytest.mark.slow
def test_the_optimum_of_countdown_is_the_gibbs_value_of_its_right_answers() -> None:
    task = make_task("Countdown", difficulty=3)
    solution = solve(task, split="eval")
    every = solution.reference.trajectories
    values = []
    for prompt in range(8):
        own = every.prompt == prompt
        right = 8 * every.probability[own & (every.returns == 1)].sum()
        values.append(task.beta * math.log(1 - right + right * math.exp(1 / task.beta)))
    assert solution.objective == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) > 0.7, "every target can be reached"


def test_reachable_numbers_by_hand() -> None:
    found = reachable((Fraction(2), Fraction(3)))
    assert found == {5, 1, -1, 6, Fraction(2, 3), Fraction(3, 2)}
    assert reachable((Fraction(0), Fraction(2))) == {2, -2, 0}


@pytest.mark.slow
@pytest.mark.parametrize("difficulty", [2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_prompts_of_countdown_are_solvable_and_the_longest_answer_fits(difficulty: int) -> None:
    task = make_task("Countdown", difficulty=difficulty)
    for split in ("train", "eval", "tune"):
        columns = task.prompt_set(split).columns
        for numbers, target in zip(columns["numbers"], columns["target"], strict=True):
            assert len(numbers) == difficulty
            assert Fraction(target) in reachable(tuple(map(Fraction, numbers)))
    env = TokenEnv(task)
    token = {task.vocabulary.token_text(i): i for i in range(task.vocabulary.size)}
    _, info = env.reset(seed=0)
    first, *rest = info["prompt"].split()[2:]
    words = ["("] * (difficulty - 1) + [first] + [word for n in rest for word in ("-", n, ")")] + ["="]
    for word in words:
        assert env.action_masks()[token[word]], words
        _, _, terminated, _, info = env.step(token[word])
    assert terminated
    assert info["finish_reason"] == "stop"
    assert len(words) == task.max_new_tokens


def test_a_prompt_without_numbers_has_an_end() -> None:
    env = TokenEnv("Countdown")
    env.reset(options={"prompt": "24 from"})
    assert [env.task.vocabulary.token_text(int(i)) for i in np.flatnonzero(env.action_masks())] == ["="]


@pytest.mark.parametrize("name", ["Countdown", "Gsm"])
@pytest.mark.filterwarnings("error")
def test_environments_are_sound(name: str) -> None:
    check_env(TokenEnv(name, reference="uniform"), skip_render_check=True)


@pytest.mark.parametrize("difficulty", [1, 4, 8])
def test_a_solution_of_gsm_is_right_step_by_step(difficulty: int) -> None:
    task = make_task("Gsm", difficulty=difficulty, problems=200)
    for split in ("train", "eval", "tune"):
        columns = task.prompt_set(split).columns
        for text, solution in zip(task.prompt_set(split).texts, columns["answer"], strict=True):
            *lines, last = solution.splitlines()
            value = int(text.split()[2])
            assert len(lines) == difficulty
            for line in lines:
                a, sign, k, _, right = line.split()
                assert int(a) == value
                assert f" {k} " in text
                value = {"+": value + int(k), "-": value - int(k), "*": value * int(k), "/": value // int(k)}[sign]
                assert value == int(right) > 0
            assert last == f"#### {value}"
            assert results(solution).total() == difficulty


@pytest.mark.slow
def test_problems_of_gsm_are_different_and_follow_the_seed() -> None:
    task = make_task("Gsm", problems=3000)
    texts = [*task.prompt_set("train").texts, *task.prompt_set("eval").texts, *task.prompt_set("tune").texts]
    assert len(set(texts)) == len(texts) == 3200
    assert make_task("Gsm", problems=10).prompt_set("eval").texts == task.prompt_set("eval").texts
    assert make_task("Gsm", seed=1).prompt_set("eval").texts != task.prompt_set("eval").texts


def test_gsm_pays_for_the_final_answer() -> None:
    task = make_task("Gsm")
    solution = task.prompt_set("eval").columns["answer"][0]
    right = final_answer(solution)
    prompts = [task.encoded("eval")[0]] * 4
    texts = [solution, f"It is {right}.", f"#### {right}1", ""]
    assert task.judge("eval", prompts, [[5]] * 4, texts=texts).total.tolist() == [1, 1, 0, 0]


GSM = {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"}
MATH = {"problem": "Half of one?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 1", "answer": "other"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [(GSM, "so 4", "5"), (MATH, r"\boxed{0.5}", "2"), ({"prompt": "a", "answer": 3}, "3", "4")],
)
def test_files_of_others_are_read(row: dict[str, Any], right: str, wrong: str, tmp_path: Path) -> None:
    if "problem" in row:
        pytest.importorskip("math_verify")
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    task = make_task("Gsm", prompts=path)
    assert task.prompt_set("train").texts == (row.get("question") or row.get("problem") or row["prompt"],)
    prompts = [task.encoded("train")[0]] * 2
    assert task.judge("train", prompts, [[5]] * 2, texts=[right, wrong]).total.tolist() == [1, 0]
    assert (task.timeout is None) == ("problem" not in row)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("Countdown", {"difficulty": 1}, "difficulty=1"),
        ("Countdown", {"difficulty": 5}, "difficulty=5"),
        ("Gsm", {"difficulty": 9}, "difficulty=9"),
        ("Gsm", {"problems": 0}, "problems=0"),
        ("Gsm", {"seed": -1}, "seed=-1"),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_task(name, **options)


@pytest.mark.parametrize(("question", "answer"), [("question", "answer"), ("problem", "solution")])
def test_rows_of_a_file_are_counted_and_renamed(tmp_path, question, answer):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({question: f"{n}?", answer: f"#### {n}"}) + "\n" for n in range(4)))
    task = make_task("Gsm", prompts=f"{path}#rows=2", eval_prompts=path)
    assert (task.prompt_set("train").texts, len(task.prompt_set("eval"))) == (("0?", "1?"), 4)
    assert len(task.prompt_set("train").columns["answer"]) == 2
    path.write_text("{" + path.read_text())
    with pytest.raises(ValueError, match=r"problems\.jsonl, line 1: .*not JSON"):
        make_task("Gsm", prompts=path)


@pytest.mark.parametrize("words", [[")"], ["(", "1", "1", "1"], ["=", ")", ")"], ["(", ")", ")", "+"]])
def test_countdown_s_mask_leaves_something_after_what_it_did_not(words):
    env = TokenEnv("Countdown")
    ids = {env.task.vocabulary.token_text(token): token for token in range(env.task.vocabulary.size)}
    env.reset(seed=0)
    for word in words:
        if env.step(ids[word])[2]:
            return
        assert env.action_masks().any()


@pytest.mark.parametrize("name", ["Gsm", "Json"])
@pytest.mark.parametrize("split", ["eval", "tune"])
def test_held_out_prompts_need_prompts_beside_them(name, split):
    with pytest.raises(ValueError, match=rf"^{split}_prompts=.*allowed is None where there are no prompts of your own"):
        make_task(name, **{f"{split}_prompts": ["What is 2 plus 3?"]})


@pytest.mark.parametrize("name", ["Clarify", "Persuade", "TwentyQuestions", "Calculator", "Lookup"])
def test_a_prompt_that_hides_nothing_known_is_refused_by_name(name):
    word = "no" if name in ("Persuade", "TwentyQuestions") else "wrong"  # of the vocabulary
    with pytest.raises(ValueError, match=rf"prompt '{word}': not one of "):
        TokenEnv(name).reset(options={"prompt": word})
