"""`hf:MODEL`: any causal LM or PEFT adapter as a policy, wherever an agent is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_tools import assert_one_line, run
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.registry import agent_class
from transformers import AutoModelForCausalLM

from textgym.evaluate import evaluate
from textgym.lm.causal import CausalLM
from textgym.task import make_reference
from textgym.world import MODEL_PATH

ID, OPTIONS = "textgym/Text-v0", {"prompts": ["Please add up 3 plus 7"], "max_new_tokens": 1}


@pytest.fixture(scope="module")
def env() -> Any:
    return make_env(ID, 2, **OPTIONS)


@pytest.fixture(scope="module")
def louder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with other weights, as another program would save it: with no tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "louder"
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight *= 1.5
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_it_is_the_model_against_the_task_s_reference(env: Any, louder: Path) -> None:
    agent, task = make_agent(f"hf:{louder}", env), env.unwrapped.task
    observation, _ = env.reset(seed=0)
    model = AutoModelForCausalLM.from_pretrained(louder, dtype=torch.float32)
    length = int(observation["attention_mask"][0].sum())
    with torch.no_grad():
        logits = model(torch.as_tensor(observation["input_ids"][:1, :length])).logits[0, -1].double()
    allowed = task.vocabulary.allowed
    own = torch.log_softmax(logits[torch.tensor(allowed)], -1).numpy()
    np.testing.assert_allclose(agent.log_probs(observation)[0, allowed], own, atol=1e-4)  # type: ignore[index]
    base = make_reference(task).log_probs(observation)[0, allowed].astype(np.float64)
    found = evaluate(agent, task, per_prompt=2)
    assert found.exact
    assert found.kl is not None
    assert found.kl.mean == pytest.approx(float((np.exp(own) * (own - base)).sum()), abs=1e-5)
    assert found.kl.mean > 0.01


def test_the_task_s_own_model_is_the_reference(env: Any) -> None:
    found = evaluate(make_agent(f"hf:{MODEL_PATH}", env), env.unwrapped.task, per_prompt=2)
    assert found.kl is not None
    assert found.kl.mean == pytest.approx(0.0, abs=1e-9)


def test_saved_and_loaded_by_its_name_alone(env: Any, louder: Path, tmp_path: Path) -> None:
    agent = make_agent(f"hf:{louder}", env, seed=3)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent", env)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(again.log_probs(observation), agent.log_probs(observation))  # type: ignore[arg-type]
    assert again.config == agent.config
    assert again.name == f"hf:{louder}"
    assert not again.learns


@pytest.mark.slow
def test_an_adapter_is_read_over_its_base(env: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32), config)
    model.save_pretrained(tmp_path / "adapter")
    observation, _ = env.reset(seed=0)
    found = make_agent(f"hf:{tmp_path / 'adapter'}", env).log_probs(observation)
    expected = CausalLM(model, env.unwrapped.task.vocabulary.allowed, device="cpu").log_probs(observation)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # type: ignore[arg-type]
    base = make_reference(env.unwrapped.task).log_probs(observation)
    assert np.abs(np.exp(expected) - np.exp(base)).max() > 1e-3


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The built-in model, whose tokenizer gives two ids to each other's tokens."""
    folder = Path(shutil.copytree(MODEL_PATH, tmp_path / "other"))
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    first, second = (token for token, place in ids.items() if place in (500, 501))
    ids[first], ids[second] = ids[second], ids[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_another_tokenizer_is_refused_by_name(capsys: Any, other: Path) -> None:
    code, _, err = run(capsys, "eval", "Helpful-v0", "--agent", f"hf:{other}")
    assert_one_line(
        code, err, f"'hf:{other}'", "its tokenizer is another", "2 ids differ", "first 500", "Text-v0 --env"
    )


def test_what_is_no_model_is_said(env: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model is missing, as in hf:"):
        agent_class("hf:")
    with pytest.raises(ValueError, match="no causal LM"):
        make_agent(f"hf:{tmp_path}", env)
    with pytest.raises(ValueError, match="no folder, and no model"):
        make_agent("hf:./nowhere", env)


@pytest.mark.long
def test_the_commands_take_it(capsys: Any, louder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suites.py").write_text(
        "from textgym_benchmarks.suite import Cell, Evaluation, Suite\n"
        f"def mine():\n    cell = Cell({ID!r}, 'reference', 16, 0, env={OPTIONS!r})\n"
        "    return Suite('mine', (cell,), evaluation=Evaluation(points=1))\n"
    )
    words = [f"{name}={json.dumps(value)}" for name, value in OPTIONS.items()]
    code, out, err = run(capsys, "eval", "Text-v0", "--agent", f"hf:{louder}", "--env", *words, "--json")
    assert code == 0, err
    kl = json.loads(out)["kl"]["mean"]
    assert kl > 0.01
    code, out, err = run(capsys, "inspect", "Text-v0", "--agent", f"hf:{louder}", "--env", *words, "--json")
    assert code == 0, err
    bench = ("bench", "--suite", "suites:mine", "--agents", f"hf:{louder}", "--engine", "serial", "--out", "b")
    code, out, err = run(capsys, *bench)
    assert code == 0, err
    (result,) = Path("b").glob("cells/*/result.json")
    assert json.loads(result.read_text())["measures"]["after"]["kl"]["mean"] == pytest.approx(kl, abs=1e-6)
    code, out, err = run(capsys, "report", "b")
    assert code == 0, err
    assert f"hf:{louder}" in (tmp_path / "b/report/index.html").read_text()
