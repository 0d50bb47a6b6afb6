"""`Optimality` in transformers' own Trainer: what it logs is what `evaluate` says, and learning is not touched."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from textgym_agents.training.optimality import Optimality
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from textgym import make_task
from textgym.lm.causal import CausalLM
from textgym.optimum import optimum_of
from textgym.solver import policy_values, solve
from textgym.world import MODEL_PATH

PROMPTS = ["Good afternoon my friend!", "Please add up 3 plus 7 is"]


@pytest.fixture(scope="module")
def task() -> Any:
    """Answers of one token: J* and every measure of a policy are exact."""
    return make_task("Text", prompts=PROMPTS, reward={"name": "keywords", "words": ["The"]}, max_new_tokens=1)


class Reporter(TrainerCallback):
    """What a callback that stands behind it sees."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **parts: Any) -> None:
        self.rows.append(dict(logs))


def train(out: Path, callbacks: list[TrainerCallback], steps: int = 3) -> Trainer:
    """A few steps that teach the built-in model one sentence; nothing is logged on the way."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)
    vocabulary = make_task("Text", prompts=PROMPTS, reward="no_repeat").vocabulary
    ids = [*vocabulary.encode_prompt(PROMPTS[0]), *vocabulary.codec.encode("The cups are in the river.")]
    rows = [{"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)}] * 8
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(model, args, train_dataset=rows, callbacks=callbacks)  # type: ignore[arg-type]
        trainer.train()
    return trainer


@pytest.mark.slow
def test_the_rows_are_what_evaluate_says(task: Any, tmp_path: Path) -> None:
    behind = Reporter()
    trainer = train(tmp_path, [Optimality(task, every=2, per_prompt=2), behind])
    assert trainer.model.training  # type: ignore[union-attr]
    rows = [row for row in trainer.state.log_history if "eval/objective" in row]
    assert [row["step"] for row in rows] == [0, 2, 3]
    # The model began as the task's reference.
    assert rows[0]["eval/kl"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["eval/optimality"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["eval/kl"] > rows[1]["eval/kl"] > 1e-4
    policy = CausalLM(trainer.model, task.vocabulary.allowed)  # type: ignore[arg-type]
    solution = solve(task, split="eval")
    exact = policy_values(solution.tree, policy)
    assert rows[-1]["eval/objective"] == pytest.approx(exact.objective, abs=1e-6)
    assert rows[-1]["eval/kl"] == pytest.approx(exact.kl, abs=1e-6)
    assert rows[-1]["eval/optimality"] == pytest.approx(solution.optimality(exact.objective), abs=1e-6)
    assert [row for row in behind.rows if "eval/kl" in row][-1]["eval/kl"] == rows[-1]["eval/kl"]


@pytest.mark.slow
def test_learning_is_not_touched(task: Any, tmp_path: Path) -> None:
    watched = train(tmp_path / "a", [Optimality(task, every=1, per_prompt=2, optimum=optimum_of(task))])
    alone = train(tmp_path / "b", [])
    assert watched.model is not None
    assert alone.model is not None
    for one, other in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_is_refused_at_once(task: Any) -> None:
    for words, said in (({"every": -1}, "every=-1"), ({"per_prompt": 0}, "per_prompt=0"), ({"split": "x"}, "split")):
        with pytest.raises(ValueError, match=said):
            Optimality(task, **words)
