"""The estimate of a run's memory: counted by hand where it can be, and against what tensors hold."""

import json
from dataclasses import replace

import pytest
import transformers
from lm.tiny_models import tiny_llama
from packaging.version import Version
from textgym_agents.commands.memory import main
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm import memory
from textgym_agents.lm.memory import Plan, _Run, estimate, plan_of
from textgym_agents.lm.shapes import SHAPES, model_config, shallow
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import MambaConfig, Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from textgym.__main__ import main as textgym_main
from textgym.commands.console import UsageError
from textgym.lm import backbone, categorical

TWO = shallow(model_config("Qwen2.5-0.5B"), 2)
"""Qwen2.5-0.5B with two of its layers."""
EXPERTS = Qwen3MoeConfig(
    vocab_size=100,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    moe_intermediate_size=8,
    num_experts=4,
    num_experts_per_tok=2,
)
SMALL = Plan(batch=8, prompt_tokens=6, new_tokens=4, micro_batch=4, minibatches=2, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    # The numbers of parameters that the model cards give, embeddings counted once where they are tied.
    [
        ("Qwen2.5-0.5B", 0.49e9),
        ("Qwen2.5-1.5B", 1.54e9),
        ("Qwen2.5-7B", 7.61e9),
        pytest.param("Llama-3-70B", 70.6e9, marks=pytest.mark.long),
    ],
)
def test_the_built_in_shapes_are_those_of_their_cards(name, parameters):
    with FakeTensorMode():
        assert _Run(model_config(name), SMALL).parameters == pytest.approx(parameters, rel=0.01)


@pytest.mark.long
def test_weights_are_counted():
    model = tiny_llama(11)
    count = sum(each.numel() for each in model.parameters())
    found = estimate(model.config, SMALL)
    assert found.parameters == count
    assert found.weights == 2 * 4 * count
    parts = found.parts
    assert (parts["weights of the policy"], parts["gradients"], parts["Adam's moments"]) == (
        4 * count,
        4 * count,
        8 * count,
    )
    for who in ("policy", "reference"):  # 8 rows of 4 states, 16 floats each
        assert parts[f"features of a batch, of the {who}"] == 8 * 4 * 16 * 4
    bits = estimate(model.config, Plan(**{**vars(SMALL), "token_sets": 1}))
    assert bits.parts["token sets, as bits"] == 8 * 4 * 2  # 11 tokens are two bytes


@pytest.mark.long
def test_the_cache_holds_keys_and_values_of_all_tokens():
    found = estimate(TWO, SMALL)
    # 2 layers, keys and values, 2 heads of 64 floats, 10 tokens but the last, of 8 rows
    cache = 2 * 2 * 2 * 64 * 4 * 9 * 8
    # and the features, mask and lengths that stand beside it
    assert found.parts["key-value cache"] == cache + 8 * 896 * 4 + 8 * 9 * 8 + 8 * 8


@pytest.mark.long
def test_prompts_take_what_those_of_a_part_take(monkeypatch):
    def read(rows):
        """Bytes of reading prompts of 512 tokens, beside the cache: 2 layers, keys and values, 2 heads of 64 floats."""
        with FakeTensorMode():
            plan = Plan(**{**vars(SMALL), "batch": rows, "prompt_tokens": 512})
            return _Run(TWO, plan).sampling()[1] - rows * 512 * 2 * 2 * 2 * 64 * 4

    two, eight = read(2), read(8)
    assert eight == pytest.approx(4 * two, rel=0.05)
    monkeypatch.setattr(backbone, "READ_AT_ONCE", (4 * (896 + 4864) + 2 * 512) * 512 * 2)
    assert read(8) == pytest.approx(two, rel=0.15)  # and the keys of a layer, which are joined


@pytest.mark.long
def test_an_adapter_needs_no_reference_and_little_else():
    full = estimate(TWO, SMALL)
    adapter = estimate(TWO, Plan(**{**vars(SMALL), "lora_rank": 8, "precision": "bfloat16"}))
    assert "weights of the reference" not in adapter.parts
    # Rank 8 on all linear layers: 8 (in + out) of q, k, v, o, gate, up and down, 2 layers, float32
    each = 8 * ((896 + 896) * 2 + (896 + 128) * 2 + (896 + 4864) * 3)
    assert adapter.parts["gradients"] == 4 * 2 * each
    assert adapter.parts["weights of the policy"] == pytest.approx(2 * full.parameters + 4 * 2 * each, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.sweep), "bfloat16"])
@pytest.mark.long
def test_an_adapter_of_a_small_llama_or_of_mamba_is_estimated(precision):
    adapter = {**vars(SMALL), "lora_rank": 2, "precision": precision}
    found = estimate(tiny_llama(11).config, Plan(**adapter))
    # Rank 2 on q, k, v, o (hidden 16, two of four heads for keys) and gate, up, down (24 wide), 2 layers
    assert found.parts["gradients"] == 4 * 2 * 2 * ((16 + 16) * 2 + (16 + 8) * 2 + (16 + 24) * 3)
    one = estimate(tiny_llama(11).config, Plan(**{**adapter, "lora_targets": "q_proj"}))
    assert one.parts["gradients"] == 4 * 2 * 2 * (16 + 16)
    mamba = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    found = estimate(mamba, Plan(**{**adapter, "lora_targets": "in_proj"}))
    assert found.parts["gradients"] == 4 * 2 * 2 * (16 + 64)  # twice the inner size of 32
    with pytest.raises(ValueError, match=r"such as in_proj, x_proj \(.*out_proj' is incompatible"):  # as in learning
        estimate(mamba, Plan(**{**adapter, "lora_targets": "out_proj"}))


def test_a_saved_adapter_stands_for_its_base(tmp_path):
    tiny_llama(11).save_pretrained(tmp_path / "base")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(tmp_path / "base")})
    )
    assert model_config(tmp_path / "own", lora_rank=2).vocab_size == 11
    with pytest.raises(ValueError, match=r"lora_rank=None.*own, an adapter"):
        model_config(tmp_path / "own", lora_rank=None)


@pytest.mark.long
def test_a_deep_model_is_reckoned_as_if_it_were_run_whole(monkeypatch):
    """Of a mini-batch in one pass, where a shallow model peaks in its loss and a deep one at its last gradient."""
    deep = shallow(model_config("Qwen2.5-0.5B"), 5)
    plan = Plan(batch=16, prompt_tokens=64, new_tokens=64, micro_batch=4, gradient_checkpointing=True)
    found = estimate(deep, plan)
    monkeypatch.setattr(memory, "_DEPTHS", (5, 6))
    whole = estimate(deep, plan)
    assert found.parts == pytest.approx(whole.parts, rel=0.01)
    assert found.phases == pytest.approx(whole.phases, rel=0.01)
    names = ["weights of the policy", "weights of the reference", "gradients", "Adam's moments"]
    names += [f"features of a batch, of the {who}" for who in ("policy", "reference")]
    held = sum(whole.parts[name] for name in names)
    last = max(whole.parts[name] for name in ("Adam's step", "micro-batch, with gradient checkpointing"))
    assert whole.phases["update"] == held + last
    assert min(found.parts.values()) > 0


@pytest.mark.long
@pytest.mark.slow
def test_the_kl_of_a_batch_is_taken_over_as_many_states_as_fit_whatever_the_micro_batch(monkeypatch):
    monkeypatch.setattr(categorical, "ON_CPU", 20 * 4000)  # 20 states at once, of 8 x 4; a micro-batch has 4

    def arrays(**changes):
        """What is held in chunks, in floats of a distribution over 4,000 tokens."""
        with FakeTensorMode():
            return _Run(tiny_llama(4000).config, replace(SMALL, micro_batch=1, **changes)).scoring()[1] / (4 * 4000)

    # Log-probabilities of both models, the policy's probabilities, the log-ratio and its product with them
    assert arrays() == pytest.approx(5 * 20, rel=0.01)
    assert arrays(new_tokens=2) == pytest.approx(5 * 16, rel=0.01)
    # Of what the reference says of the four tokens of a micro-batch: logits and log-probabilities
    assert arrays(exact=False) == pytest.approx(4 + 4, rel=0.01)


@pytest.mark.long
def test_a_reference_elsewhere_is_in_no_sum():
    config = LMPPOConfig(batch=8, micro_batch=4, minibatches=2, device="cuda")
    here = estimate(TWO, plan_of(config, 6, 4))
    assert here.elsewhere == {}
    there = estimate(TWO, plan_of(replace(config, reference_device="cpu"), 6, 4))
    assert there.elsewhere == {"cpu": 4 * here.parameters}
    assert there.weights == here.weights - 4 * here.parameters
    assert there.phases["update"] == here.phases["update"] - 4 * here.parameters
    assert plan_of(replace(config, reference_device="cuda:0"), 6, 4) == plan_of(config, 6, 4)
    with pytest.raises(ValueError, match="reference_device='moon': allowed"):
        plan_of(replace(config, reference_device="moon"), 6, 4)
    assert [plan_of(replace(config, batch=batch), 6, 4).batch for batch in (None, 32)] == [256, 32]


def test_all_settings_that_memory_depends_on_are_taken_or_refused():
    config = LMPPOConfig(lora_rank=2, lora_targets="q_proj")
    assert plan_of(config, 6, 4).lora_targets == "q_proj"
    with pytest.raises(ValueError, match=r"parallel='fsdp'.*docs/scale\.md"):
        plan_of(LMPPOConfig(parallel="fsdp"), 6, 4)


@pytest.mark.slow
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="before 5.23 the gradient of experts needs data"
)
@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.sweep), "bfloat16"])
@pytest.mark.long
def test_a_mixture_of_experts_is_estimated(precision):
    found = estimate(EXPERTS, Plan(**{**vars(SMALL), "precision": precision}))
    # embeddings in and out; q and o, k and v, heads' norms, router, experts' gate, up, down, two norms; a last norm
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 2 * 4 + 4 * 16 + 4 * 3 * 16 * 8 + 2 * 16
    assert found.parameters == 2 * 100 * 16 + 2 * layer + 16
    assert found.parts["gradients"] == 4 * found.parameters


def test_an_architecture_that_needs_data_is_refused_in_a_line(monkeypatch, caplog):
    # No shape is right for this product, as none was for products of experts before torch 2.15.
    monkeypatch.setattr(Qwen3MoeRMSNorm, "forward", lambda _, hidden: hidden[0] @ hidden.new_ones(1, 1))
    with pytest.raises(ValueError, match=r"^model: a qwen3_moe is not estimated: .* without data \(a and b must"):
        estimate(EXPERTS, SMALL)
    assert not caplog.text  # torch would log pages


@pytest.mark.long
def test_checkpointing_is_estimated_beside_the_plan():
    many = {**vars(SMALL), "prompt_tokens": 2000}
    plain = estimate(TWO, Plan(**many)).parts
    other = estimate(TWO, Plan(**{**many, "gradient_checkpointing": True})).parts
    names = ("micro-batch, every layer's values kept", "micro-batch, with gradient checkpointing")
    assert [plain[name] for name in names] == [other[name] for name in names]
    assert plain[names[1]] < plain[names[0]]  # of many tokens: few need less than the gradient of the output layer


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("precision", "int8"), ("lora_rank", 0), ("device", "tpu")])
def test_a_plan_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Plan(**{name: value})


@pytest.mark.long
def test_the_command_prints_parts_and_what_fits(capsys, tmp_path):
    sizes = ["--batch", "8", "--prompt-tokens", "6", "--new-tokens", "4", "--micro-batch", "2", "--device", "cpu"]
    TWO.save_pretrained(tmp_path)
    main([str(tmp_path), *sizes])
    said = capsys.readouterr().out
    for text in ("165,960,320", "weights of the policy", "key-value cache", "24 GB: fits", "80 GB: fits"):
        assert text in said
    main([str(tmp_path), *sizes, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["peak"] == max(found["phases"].values())
    assert found["parts"]["weights of the policy"] == 4 * 165960320


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(UsageError, match="--agent dpo"):
        main(["Qwen2.5-0.5B", "--agent", "dpo"])
    with pytest.raises(ValueError, match=r"model='./none'.*Qwen2\.5-0\.5B"):
        model_config("./none")
    assert set(SHAPES) == {"Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B", "Llama-3-70B"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sets", [pytest.param(1, marks=pytest.mark.long), 2]
)  # what the task's mask allows, and what a cut has kept of that
def test_sets_of_tokens_are_held_more_often_while_they_are_put_in_order(sets):
    config = tiny_llama(vocab=4096).config
    plan = Plan(batch=64, prompt_tokens=8, new_tokens=64, token_sets=sets)
    bits = 64 * 64 * 4096 // 8
    found = estimate(config, plan)
    assert found.parts["token sets, as bits"] == sets * bits
    assert found.parts["token sets, being put in order"] == (sets + 1) * bits  # joined, in order, those before
    assert found.phases["sampling"] >= found.parts["weights of the policy"] + (2 * sets + 1) * bits


def test_masks_and_cuts_are_sets_of_tokens():
    config = LMPPOConfig()
    assert [plan_of(replace(config, top_p=top_p), 6, 4, masked).token_sets for top_p, masked in
            ((1.0, False), (1.0, True), (0.9, False), (0.9, True))] == [0, 1, 1, 2]  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
def test_a_task_with_a_mask_has_its_masks_counted(capsys):
    textgym_main(["train", "textgym/Json-v0", "--dry-run"])
    assert "token sets, as bits" in capsys.readouterr().out
    textgym_main(["train", "textgym/Helpful-v0", "--dry-run"])
    assert "token sets" not in capsys.readouterr().out
