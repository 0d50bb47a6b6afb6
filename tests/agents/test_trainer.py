"""The supervised trainer: exact means over items, the standard schedules, checkpoints that lose nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from textgym_agents.config import Decay, FitConfig
from textgym_agents.lm.agent import apply_gradient
from textgym_agents.lm.checkpoint import module_tensors, restore_module
from textgym_agents.lm.devices import ALONE
from textgym_agents.lm.trainer import (
    Batch,
    SupervisedLoss,
    SupervisedTrainer,
    accumulate,
    rate_factor,
    steps_done,
)
from torch import Tensor, nn
from transformers.optimization import get_scheduler


class Squares(SupervisedLoss[tuple[float, ...]]):
    """Squared errors of a line with dropout; an item is a number."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.weight, 0.3)
        nn.init.constant_(self.line.bias, -0.2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, **batch: Tensor) -> Tensor:
        x = batch["x"]
        return (self.line(self.dropout(x[:, None]))[:, 0] - 2 * x).square().sum()

    def count(self, batch: Batch) -> int:
        return len(batch["x"])

    def collate(self, rows: Sequence[tuple[float, ...]]) -> Batch:
        return {"x": torch.tensor([x for row in rows for x in row])}


class Deeper(Squares):
    def __init__(self) -> None:
        super().__init__()
        self.another = nn.Linear(1, 1)


# Rows of different numbers of items: a mean of the parts' means would be another number.
ROWS = [(1.0,), (2.0, -1.0, 0.5), (0.1, 0.2), (3.0,), (-2.0, 1.5)]


def fit(
    folder: Path, loss: SupervisedLoss[tuple[float, ...]] | None = None, **changes: Any
) -> SupervisedTrainer[tuple[float, ...]]:
    settings = FitConfig(**{"batch": 4, "micro_batches": 2, "epochs": 3, "save_every": 2, **changes})
    lengths = [len(row) for row in ROWS]
    return SupervisedTrainer(loss or Squares(0.5), ROWS, lengths, settings, 0.05, settings.seed, folder)


def never() -> bool:
    return False


def ignored(step: int, metrics: dict[str, float]) -> None:
    pass


def test_a_step_in_parts_is_the_step_of_the_whole() -> None:
    found = []
    for parts in ([ROWS], [ROWS[:1], ROWS[1:3], ROWS[3:]]):
        loss = Squares()
        optimizer = torch.optim.SGD(loss.parameters(), 0.1)
        batches = [loss.collate(part) for part in parts]
        computed = ((loss(**batch), {"items": float(loss.count(batch))}) for batch in batches)
        assert accumulate(optimizer, computed, 9) == {"items": 1.0}
        norm = apply_gradient(optimizer, ALONE, 0.5, "step 1")
        found.append([norm, *(float(p.detach()) for p in loss.parameters())])
    assert found[0] == pytest.approx(found[1])
    whole = Squares()
    mean = whole(**whole.collate(ROWS)).sum() / 9
    slopes = torch.autograd.grad(mean, list(whole.parameters()))
    assert found[0][0] == pytest.approx(math.hypot(*(float(slope) for slope in slopes)))
    moved = math.hypot(found[0][1] - 0.3, found[0][2] + 0.2)
    assert found[0][0] > 0.5
    assert moved == pytest.approx(0.1 * 0.5)  # the gradient was scaled down to the norm 0.5


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    loss = Squares()
    optimizer = torch.optim.SGD(loss.parameters(), 0.1)
    accumulate(optimizer, [(loss(x=torch.tensor([math.inf])), {})], 1)
    with pytest.raises(FloatingPointError, match=r"step 7: the gradient is not finite; lower learning_rate=0\.1"):
        apply_gradient(optimizer, ALONE, 1.0, "step 7")
    assert [float(p.detach()) for p in loss.parameters()] == pytest.approx([0.3, -0.2])


def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path) -> None:
    loss = Squares()
    nn.init.constant_(loss.line.bias, math.nan)
    with pytest.raises(ArithmeticError, match="the loss of step 1 is nan; a lower learning_rate may help"):
        fit(tmp_path / "fit", loss).run(ignored, never)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_rate_is_that_of_the_standard_schedule_one_step_ahead(schedule: Decay, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    standard = get_scheduler(schedule, optimizer, warmup, 11).lr_lambdas[0]
    rates = [rate_factor(schedule, step, 10, warmup) for step in range(10)]
    assert rates == pytest.approx([standard(step + 1) for step in range(10)])
    assert min(rates) > 0


def test_an_interrupted_training_goes_on_bit_for_bit_and_leaves_global_randomness_alone(
    tmp_path: Path,
) -> None:
    whole = fit(tmp_path / "whole")
    before = torch.get_rng_state()
    rows: list[tuple[int, dict[str, float]]] = []
    assert whole.run(lambda *row: rows.append(row), never)
    assert torch.equal(torch.get_rng_state(), before)
    assert [step for step, _ in rows] == [1, 2, 3, 4] == [*range(1, whole.steps + 1)]
    assert rows[0][1].keys() == {"loss", "gradient_norm", "lr"}
    assert steps_done(tmp_path / "cut") is None
    parts: list[tuple[int, dict[str, float]]] = []
    for stop in (1, 3, 9):
        torch.rand(3)  # what else happens to the global generator does not matter
        cut = fit(tmp_path / "cut")
        finished = cut.run(lambda *row: parts.append(row), lambda: bool(parts) and parts[-1][0] == stop)  # noqa: B023
        assert steps_done(tmp_path / "cut") == min(stop, 4)
        assert finished is (stop == 9)
    assert parts == rows
    for ours, theirs in zip(cut.loss.parameters(), whole.loss.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_logs_are_kept_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    seen: list[object] = []
    fit(tmp_path / "fit").run(
        lambda step, _: seen.append(step), never, lambda: seen.append(steps_done(tmp_path / "fit"))
    )
    assert seen == [1, 2, None, 3, 4, 2]


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "fit"
    fit(folder).run(ignored, never)
    head = json.loads((folder / "agent.json").read_text())
    for change, said in (
        ({"format": 1}, "in format 1; allowed is 'supervised training' in format 2"),
        ({"state": {"step": 99}}, "step=99: allowed is an integer in 0..4"),
        ({"state": {}}, "'step'"),
    ):
        (folder / "agent.json").write_text(json.dumps(head | change))
        with pytest.raises(ValueError, match=said) as caught:
            fit(folder).run(ignored, never)
        assert "\n" not in str(caught.value)
    (folder / "agent.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match="does not fit here, or is damaged"):
        fit(folder, Deeper()).run(ignored, never)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.last = nn.Linear(2, 2, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("seen", torch.zeros(1))


def test_tied_weights_are_saved_once_and_stay_tied() -> None:
    model, other = Tied(), Tied()
    tensors = {name: tensor.clone() for name, tensor in module_tensors(model).items()}
    assert tensors.keys() == {"first.weight", "seen"}
    restore_module(other, tensors)
    assert torch.equal(other.last.weight, model.first.weight)
    assert other.last.weight is other.first.weight
    with pytest.raises(ValueError, match=r"'seen'"):
        restore_module(other, {"first.weight": tensors["first.weight"]})


def test_weight_decay_is_for_matrices_only(tmp_path: Path) -> None:
    found = []
    for decay in (0.0, 0.5):
        loss = Squares()
        fit(tmp_path / str(decay), loss, weight_decay=decay, batch=8, micro_batches=1, epochs=1).run(ignored, never)
        found.append([float(p.detach()) for p in loss.parameters()])
    assert found[0][1] == found[1][1]
    assert found[0][0] - found[1][0] == pytest.approx(0.05 * 0.5 * 0.3)


def test_parameters_that_need_no_gradient_stay(tmp_path: Path) -> None:
    loss = Squares()
    loss.line.weight.requires_grad_(False)
    fit(tmp_path / "fit", loss).run(ignored, never)
    assert float(loss.line.weight) == pytest.approx(0.3)
    assert float(loss.line.bias.detach()) != pytest.approx(-0.2)


def test_steps_are_counted_over_all_epochs(tmp_path: Path) -> None:
    seen: list[int] = []
    every = fit(tmp_path / "fit", batch=4, micro_batches=4, epochs=2)
    every.run(lambda step, _: seen.append(step), never)
    assert np.array_equal(seen, [1, 2, 3])  # ten rows, four a step
