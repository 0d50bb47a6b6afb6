"""`Optimality` inside TRL's GRPO and RLOO trainers: J, KL and optimality in their own logs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from textgym_agents.training.optimality import Optimality
from trl_tools import config, datasets, trl

from textgym import make_task
from textgym.evaluate import evaluate
from textgym.lm.causal import CausalLM, load_causal_lm
from textgym.optimum import optimum_of
from textgym.world import MODEL_PATH

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_its_measures_stand_in_the_trainer_s_log(name: str, tmp_path: Path) -> None:
    task = make_task("Helpful")
    prompts = [[{"role": "user", "content": text}] for text in task.prompt_set("train").texts[:16]]

    def paid(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(len(completion[0]["content"])) for completion in completions]

    optimum = optimum_of(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = getattr(trl, f"{name}Trainer")(
            str(MODEL_PATH),
            paid,
            args=config(tmp_path / "out", 16, 4, 12, name, learning_rate=1e-3),
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
            callbacks=[Optimality(task, per_prompt=1, optimum=optimum)],
        )
        trainer.train()
    rows: list[dict[str, Any]] = [row for row in trainer.state.log_history if "eval/kl" in row]
    assert [row["step"] for row in rows] == [0, 2]
    assert "reward" in rows[1]  # the trainer's own row
    assert rows[0]["eval/kl"] == pytest.approx(0, abs=1e-5)
    trainer.save_model(str(tmp_path / "model"))
    policy = CausalLM(load_causal_lm(tmp_path / "model"), task.vocabulary.allowed)
    found = evaluate(policy, task, optimum=optimum, per_prompt=1)
    assert found.objective is not None
    assert found.kl is not None
    assert found.optimality is not None
    assert found.kl.mean > 1e-3
    for measure in ("objective", "kl", "optimality"):
        assert rows[1][f"eval/{measure}"] == pytest.approx(getattr(found, measure).mean, abs=1e-4)
