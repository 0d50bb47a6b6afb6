"""The check by which a backbone is chosen: what it finds, what it leaves alone, and what is built on it."""

import functools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm.test_zoo import alone
from lm.tiny_models import tiny_gpt2, tiny_llama
from lm.tiny_rewards import save_reward_model
from lm.zoo import VOCAB, zoo_classifier, zoo_model
from textgym_agents.lm.critic import branch
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.rlhf.inputs import longest_row
from transformers import BertModel, GPT2LMHeadModel, LEDConfig

from textgym.lm.backbone import HuggingFaceBackbone, RereadingBackbone, max_tokens
from textgym.lm.causal import CausalLM, check_positions
from textgym.lm.checked import _precision, choose_backbone
from textgym.lm.decoder import Decoder
from textgym.lm.llama import LlamaBackbone
from textgym.lm.scoring import check_scores, load_reward_model, sequence_scores, start_reward_model
from textgym.rewards import TextGymWarning


class Positionless(GPT2LMHeadModel):
    """Counts its positions by itself, from the first column of a batch, padding or not."""

    def spoil(self):
        def drop(_, arguments, options):
            return arguments, {name: value for name, value in options.items() if name != "position_ids"}

        self.transformer.register_forward_pre_hook(drop, with_kwargs=True)


class Unselectable(GPT2LMHeadModel):
    """Its cache holds all of its rows or none."""

    def spoil(self):
        def fix_rows(_, __, output):
            cache = output.get("cache", output.get("past_key_values"))  # the latter is its name before 5.24
            if cache is not None:
                cache.reorder_cache = None

        self.transformer.register_forward_hook(fix_rows)


class Clairvoyant(GPT2LMHeadModel):
    """What it says at a position depends on the last one."""

    def forward(self, input_ids, **options):
        output = super().forward(input_ids, **options)
        output.logits = output.logits + output.logits[:, -1:].roll(1, -1)
        return output


class Restless(GPT2LMHeadModel):
    """Its weights change when it is used."""

    def forward(self, input_ids, position_ids=None, **options):
        with torch.no_grad():
            self.transformer.wte.weight.mul_(1.0)
        return super().forward(input_ids, position_ids=position_ids, **options)


class Failing(GPT2LMHeadModel):
    """It cannot be run at all."""

    def forward(self, input_ids, **options):
        raise RuntimeError("no kernel\nfor this machine")


def as_kind(kind, model=None):
    model = model or tiny_gpt2()
    model.__class__ = kind
    if hasattr(model, "spoil"):
        model.spoil()
    return model


@pytest.mark.parametrize("kind", [Positionless, Unselectable])
def test_a_model_with_a_wrong_cache_is_read_again(kind):
    with pytest.warns(TextGymWarning, match=rf"model: {kind.__name__} reads a whole row again.*with a cache"):
        assert type(choose_backbone(as_kind(kind))) is RereadingBackbone


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Clairvoyant, r"without a cache its log-probabilities are off by up to \d[\d.]* nats"),
        (Restless, "its forward changes its own parameters"),
        (Failing, r"its forward fails \(RuntimeError: no kernel\)$"),
    ],
)
def test_a_model_that_cannot_be_right_is_refused_by_name(kind, reason):
    model = as_kind(kind)
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(ValueError, match=rf"^model: {kind.__name__} cannot be used, .*{reason}"):
            choose_backbone(model)


@pytest.mark.parametrize("used", [False, True])
def test_a_model_that_divides_its_weights_is_refused_before_and_after_it_did(used):
    model, ids = zoo_model("rwkv-rescaling", num_hidden_layers=3), torch.arange(8)[None]
    plain = zoo_model("rwkv", num_hidden_layers=3)
    if used:  # without the setting the same weights say the same, but for the epsilon of layer norms
        weight = model.rwkv.blocks[2].attention.output.weight
        before = weight.detach().clone()
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=2e-3, rtol=0)
        assert torch.equal(weight.detach(), before / 4)
    with pytest.raises(
        ValueError, match=r"^model: Rwkv.* cannot be used with rescale_every=1: .*allowed is rescale_every=0"
    ):
        choose_backbone(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*reads a whole row again")
def test_an_attention_that_short_rows_switch_is_refused_where_rows_are_longer():
    sparse = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}  # full up to (5 + 2) 4 tokens
    model = zoo_model("big_bird", **sparse)
    parts = list(model.modules())
    message = r"^model: BigBird.* attention_type='block_sparse' and rows of up to 29 .*=\"original_full\".* at most 28"
    with pytest.raises(ValueError, match=message):
        choose_backbone(model, tokens=29)
    with pytest.raises(ValueError, match=message):
        longest_row(model, 29)
    assert longest_row(model, 28) == 28
    choose_backbone(model, tokens=28)
    assert all(a is b for a, b in zip(model.modules(), parts, strict=True))
    assert model.bert.attention_type == model.bert.encoder.layer[1].attention.attention_type == "block_sparse"
    choose_backbone(zoo_model("big_bird", **{**sparse, "attention_type": "original_full"}), tokens=29)
    choose_backbone(zoo_model("bigbird_pegasus", **sparse), tokens=29)  # its decoder has no such attention


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("moshi", {"sliding_window": 10}),
        ("mistral", {"sliding_window": 10}),
        ("llama4_text", {"floor_scale": 10, "attn_temperature_tuning": True}),
    ],
)
def test_rows_beyond_what_a_setting_says_are_right_or_the_model_is_refused(kind, options):
    model = zoo_model(kind, **options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TextGymWarning)
            backbone = choose_backbone(model)
    except ValueError as error:
        assert type(model).__name__ in str(error)  # noqa: PT017
        return
    ids = np.random.default_rng(1).integers(VOCAB, size=(2, 20))
    decoder = Decoder(backbone, torch.device("cpu"))
    want = [alone(model, row, 20) for row in ids]
    for step in range(12):
        lengths = np.array([8, 2]) + step
        mask = np.arange(20) < lengths[:, None]
        features = decoder.advance({"input_ids": ids, "attention_mask": mask})
        got = torch.no_grad()(backbone.read_out)(features)[0].log_softmax(-1)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(got[row], want[row][length - 1], atol=1e-4, rtol=0)


def test_rows_that_are_too_long_to_be_compared_are_named():
    model = zoo_model("mistral", sliding_window=5000, max_position_embeddings=6000)
    with pytest.warns(TextGymWarning, match="sliding_window=5000; rows that are longer were not compared"):
        choose_backbone(model, tokens=5500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_backbone(model, tokens=300)


def test_the_lean_llama_is_left_where_the_model_says_something_else():
    model = tiny_llama()
    assert type(choose_backbone(model)) is LlamaBackbone
    other = tiny_llama()
    other.model.layers[0].register_forward_hook(lambda module, inputs, output: output * 1.01)
    assert type(choose_backbone(other)) is HuggingFaceBackbone


def test_a_model_is_checked_once_and_nothing_else_about_it_changes():
    model = tiny_gpt2().train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(torch.rand(1)))  # as a router might draw
    torch.manual_seed(3)
    numpy_state, state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    choose_backbone(model)
    first = len(forwards)
    CausalLM(model, np.ones(11, dtype=bool), device="cpu").copy()
    assert len(forwards) == first <= 13
    model.train()
    model.transformer.h[0].eval()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_training_mode_comes_back_even_after_a_refusal():
    model = as_kind(Clairvoyant).train()
    with pytest.raises(ValueError, match="Clairvoyant"):
        choose_backbone(model)
    assert all(module.training for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_tolerance_is_that_of_the_type(dtype):
    assert type(choose_backbone(tiny_gpt2().to(dtype))) is HuggingFaceBackbone
    assert type(choose_backbone(tiny_llama().to(dtype))) is HuggingFaceBackbone
    with pytest.warns(TextGymWarning, match="Positionless"):
        assert type(choose_backbone(as_kind(Positionless).to(dtype))) is RereadingBackbone


@pytest.mark.slow
def test_under_autocast_a_model_is_checked_again_and_found_out_as_well():
    model = tiny_gpt2()
    forwards = []
    model.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    choose_backbone(model)
    first = len(forwards)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(choose_backbone(model)) is HuggingFaceBackbone
        assert len(forwards) == 3 * first
        with pytest.warns(TextGymWarning, match="Positionless"):
            choose_backbone(as_kind(Positionless))


@pytest.mark.parametrize("positions", [1, 2, 4])
def test_a_model_of_few_positions_can_be_checked(positions):
    assert type(choose_backbone(zoo_model("gpt2", n_positions=positions))) is HuggingFaceBackbone


@pytest.mark.parametrize("kind", ["bart", "mamba", "lfm2"])
@pytest.mark.filterwarnings("ignore:.*reads a whole row again")
def test_branches_are_the_plain_forward_of_the_longer_rows(kind):
    model = zoo_model(kind)
    policy = LMPolicy(model, np.ones(VOCAB, dtype=bool))
    ids = np.random.default_rng(0).integers(VOCAB, size=(3, 6))
    lengths = np.array([2, 5, 3])
    observation = {"input_ids": ids, "attention_mask": np.arange(6) < lengths[:, None]}
    rows, tokens = [1, 0, 0, 2, 1], [9, 8, 7, 6, 5]
    got = branch(policy, observation, torch.tensor(rows), torch.tensor(tokens))[0].log_softmax(-1)
    for answer, row, token in zip(got, rows, tokens, strict=True):
        longer = np.array([*ids[row, : lengths[row]], token])
        torch.testing.assert_close(answer, alone(model, longer, len(longer))[-1], atol=1e-4, rtol=0)


def test_positions_are_those_that_a_model_keeps():
    assert max_tokens(zoo_model("roberta")) == 63  # 64, less those up to its padding token's
    with pytest.raises(ValueError, match="it reads at most 63 tokens but a state has up to 64"):
        check_positions(zoo_model("roberta"), 64)
    assert max_tokens(zoo_model("mpt", max_seq_len=24)) == 24
    assert max_tokens(zoo_model("mamba")) is None
    whisper = zoo_model("whisper", max_target_positions=16)
    alone(whisper, np.arange(16), 16)
    with pytest.raises(IndexError):
        alone(whisper, np.arange(17), 17)
    check_positions(whisper, 16)
    with pytest.raises(ValueError, match="it reads at most 16 tokens but a state has up to 17"):
        check_positions(whisper, 17)
    for length in (8, 32):
        led = LEDConfig(max_encoder_position_embeddings=length, max_decoder_position_embeddings=16)
        assert max_tokens(SimpleNamespace(config=led, named_modules=dict)) == length
    model = SimpleNamespace(config=led, named_modules=dict)
    check_positions(model, 17, 15)
    with pytest.raises(ValueError, match=r"its decoder reads at most 16 tokens but .* have up to 17"):
        check_positions(model, 5, 16)


def test_a_model_whose_positions_change_with_the_length_reads_up_to_there():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [4.0] * 4, "short_factor": [1.0] * 4}
    model = zoo_model("phi3", sliding_window=None, original_max_position_embeddings=8, rope_parameters=rope)
    ids = np.arange(10)
    # The eighth token is read with other angles once there are nine.
    assert not torch.allclose(alone(model, ids, 10)[7], alone(model, ids, 8)[7], atol=1e-2)
    check_positions(model, 8)
    with pytest.raises(ValueError, match="it reads at most 8 tokens but a state has up to 9"):
        check_positions(model, 9)


CLASSIFIERS = [
    "llama",
    "gpt2",
    "qwen3_next",
    "jamba",
    "zamba2",
    "bert",
    "roberta",
    "openai-gpt",
    "deberta-v2",
]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_reward_models_score_rows_at_once_as_they_score_them_alone(kind):
    model = zoo_classifier(kind)
    check_scores(model)
    lengths = np.array([9, 2, 5, 12, 1])
    ids = np.random.default_rng(1).integers(3, VOCAB, size=(5, 12))  # no token that a head looks for
    with torch.no_grad():
        got = sequence_scores(model, torch.tensor(ids), torch.tensor(lengths))
        want = [model(input_ids=torch.tensor(row[None, :n])).logits[0, 0] for row, n in zip(ids, lengths, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("kind", ["mbart", "xlnet", "ctrl", "fnet", "convbert", "modernbert-decoder"])
def test_reward_models_whose_scores_depend_on_padding_are_refused_by_name(kind):
    model = zoo_classifier(kind)
    with pytest.raises(ValueError, match=rf"^model: {type(model).__name__} cannot be used, its scores of rows"):
        check_scores(model)


def test_a_reward_model_is_checked_when_it_is_loaded(tmp_path):
    save_reward_model(tmp_path, "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertModel, "forward", _without_mask(BertModel.forward))
        for load in (load_reward_model, start_reward_model):
            with pytest.raises(ValueError, match="BertForSequenceClassification cannot be used"):
                load(tmp_path)


def _without_mask(forward):
    """It reads both ways, so padding matters once the mask is gone."""

    @functools.wraps(forward)
    def unmasked(self, *arguments, **options):
        return forward(self, *arguments, **{**options, "attention_mask": None})

    return unmasked


@pytest.mark.parametrize(("precision", "kind"), [("highest", torch.float32), ("high", torch.float16)])
def test_tf32_on_a_gpu_has_the_tolerance_of_its_mantissa(precision, kind):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert _precision(tiny_gpt2(), torch.device("cuda")) == kind
        assert _precision(tiny_gpt2(), torch.device("cpu")) == torch.float32
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_model_that_has_changed_is_chosen_for_again():
    model = tiny_llama()
    assert isinstance(choose_backbone(model), LlamaBackbone)
    model.gradient_checkpointing_enable()
    assert isinstance(choose_backbone(model), HuggingFaceBackbone)
    model.gradient_checkpointing_disable()
    assert isinstance(choose_backbone(model), LlamaBackbone)
    assert isinstance(choose_backbone(model.to(torch.bfloat16)), HuggingFaceBackbone)


def test_a_model_with_an_adapter_is_read_with_it():
    peft = pytest.importorskip("peft")
    model = tiny_llama()
    choose_backbone(model)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert isinstance(choose_backbone(model), HuggingFaceBackbone)


def test_a_model_made_in_inference_mode_is_checked():
    with torch.inference_mode():
        model = tiny_llama()
    assert isinstance(choose_backbone(model), LlamaBackbone)
