"""A task with turns in TRL's GRPOTrainer: the environment's tokens are not in the loss, its reward is."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from trl_tools import STEPS, config, datasets, trl

from textgym import make_task
from textgym.bridges.trl import environment_factory, trl_columns
from textgym.rewards import FromMessages

pytestmark = pytest.mark.slow

BATCH = 4
END = "<|im_end|>"


def tokenizer() -> Any:
    """One id a byte, with the chat template of Qwen 2.5, which knows tools."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl.chat_template_utils import qwen2_5_chat_template

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(["<|im_start|>", END, "<pad>"])
    made = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token=END, pad_token="<pad>")
    made.chat_template = qwen2_5_chat_template
    return made


def model(size: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, max_position_embeddings=4096, **sizes))


def call(text: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'say', 'arguments': {'text': text}})}\n</tool_call>{END}"


def scripted(words: Any) -> Any:
    """In the place of sampling: a tiny model does not know how to call a tool."""

    def generate(prompt_ids: Any, *_: Any, **__: Any) -> Any:
        said = []
        for row, ids in enumerate(prompt_ids):
            heard = words.decode(ids).count("<tool_response>")
            said.append(words((call("<1"), call(str(row % 2)), f"bye{END}")[heard], add_special_tokens=False).input_ids)
        return said, None

    return generate


def test_the_environment_s_tokens_are_not_in_the_loss(tmp_path: Path) -> None:
    task = make_task("TwentyQuestions", difficulty=1)
    words = tokenizer()
    seen: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.GRPOTrainer(
            model(len(words)),
            args=config(tmp_path, BATCH, BATCH, 400, learning_rate=1e-3),
            train_dataset=datasets.Dataset.from_dict(trl_columns(task)),
            processing_class=words,
            environment_factory=environment_factory(task, seed=3),
        )
        trainer._generate_single_turn = scripted(words)
        loss, logps = trainer._compute_loss, trainer._get_per_token_logps_and_entropies

        def kept_loss(model: Any, inputs: Any) -> Any:
            seen.append(dict(inputs))
            return loss(model, inputs)

        def kept_logps(*given: Any, **options: Any) -> Any:
            found = logps(*given, **options)
            if found[0].requires_grad:
                found[0].retain_grad()
                seen[-1]["logps"] = found[0]
            return found

        trainer._compute_loss, trainer._get_per_token_logps_and_entropies = kept_loss, kept_logps
        trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(seen) == len(logged) == STEPS
    for inputs, row in zip(seen, logged, strict=True):
        ids, wrote = inputs["completion_ids"], inputs["completion_mask"].bool()
        policy = wrote & inputs["tool_mask"].bool()
        gradient = inputs["logps"].grad
        assert (gradient[~policy] == 0).all()
        assert (gradient[policy] != 0).all()
        said, told = ([words.decode(ids[i][where[i]]) for i in range(BATCH)] for where in (policy, wrote & ~policy))
        written = [call("<1") + call(number) + f"bye{END}" for number in "01"]
        assert sorted(said) == sorted(written * (BATCH // 2))
        for policys, environments in zip(said, told, strict=True):
            below = "yes" in environments  # the hidden number is below 1
            assert below != ("no" in environments)
            assert ("right" in environments) == (below == (policys == written[0]))
        right = sum("right" in text for text in told) / BATCH
        assert 0 < right < 1
        assert row["rewards/TurnsEnvironment/mean"] == pytest.approx(right - 0.05, abs=1e-6)
        assert row["tools/call_frequency"] == 2
        assert row["tools/failure_frequency"] == 0


def test_prompts_and_rewards_of_a_task_of_one_turn(tmp_path: Path) -> None:
    from textgym.world import MODEL_PATH

    task = make_task("Helpful", max_new_tokens=8)
    columns = {name: values[:4] for name, values in trl_columns(task).items()}
    assert columns["prompt"][0] == [{"role": "user", "content": task.prompt_set("train").texts[0]}]
    paid: list[float] = []

    class Kept(FromMessages):
        def __call__(self, *given: Any, **options: Any) -> Any:
            found = super().__call__(*given, **options)
            paid.extend(found)
            return found

    arguments = config(tmp_path, BATCH, BATCH, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.GRPOTrainer(
            str(MODEL_PATH), Kept(task.reward), args=arguments, train_dataset=datasets.Dataset.from_dict(columns)
        )
        trainer.train()
    logged = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert logged == pytest.approx([sum(paid[:4]) / 4, sum(paid[4:]) / 4], abs=1e-5)
