"""TRL and its settings for the tests of its trainers: two steps on the CPU, and nothing is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

datasets = pytest.importorskip("datasets", reason="TRL is not installed")
trl = pytest.importorskip("trl", reason="TRL is not installed")
STEPS = 2


def config(out: Path, batch: int, group: int, tokens: int, name: str = "GRPO", **settings: Any) -> Any:
    return getattr(trl, f"{name}Config")(
        output_dir=str(out),
        per_device_train_batch_size=batch,
        num_generations=group,
        max_completion_length=tokens,
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=1,
        **settings,
    )
