"""What every agent on a language model does with settings, checkpoints, and models and environments that do not fit."""

import json
import re

import numpy as np
import pytest
import torch
from agents.enumerated import count_a, first_metrics, tiny_agent, tiny_task
from chat_tools import applied, bare, chat_tokenizer
from gymnasium.vector import AutoresetMode, VectorWrapper
from lm.tiny_models import tiny_gpt2, tiny_llama
from lm.zoo import zoo_model
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.rloo import RLOO, RLOOConfig
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.critic import uncharged
from transformers import AutoTokenizer, ByT5Tokenizer, Qwen2Config, Qwen2ForCausalLM

from textgym import TokenVectorEnv, load_vocabulary, make_task
from textgym.lm.backbone import HuggingFaceBackbone, recompute_layers
from textgym.play import check_env


def test_environments_that_reset_by_themselves_are_refused(task):
    with pytest.raises(ValueError, match="autoreset_mode=DISABLED"):
        check_env(TokenVectorEnv(task, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["exact", "k1"])
def test_a_batch_is_scored_in_one_call_and_teaches_the_same(kl):
    calls = []

    def counted(prompts, completions, **columns):
        calls.append(len(prompts))
        return count_a(prompts, completions)

    task = tiny_task(reward=counted, gamma=0.6)
    env = TokenVectorEnv(task, 64, autoreset_mode=AutoresetMode.DISABLED)
    agents = [tiny_agent(task, batch=64, lam=0.9, value_coefficient=0.5, kl=kl) for _ in range(2)]
    together = first_metrics(agents[0], env)
    assert calls == [64]
    apart = first_metrics(agents[1], VectorWrapper(env))  # a wrapper sees each reward with its action
    assert len(calls) > 2
    assert sum(calls[1:]) == 64
    assert together == apart
    ours, theirs = (agent.policy.model.state_dict() for agent in agents)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("clip", 0.0),
        ("epochs", 0),
        ("lam", 1.5),
        ("kl", "k9"),
        ("beta", -1.0),
        ("minibatches", 999),
        ("seed", -1),
    ],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(ValueError, match=f"{setting}={value!r}"):
        LMPPOConfig(**{setting: value})


@pytest.mark.slow
def test_a_checkpoint_holds_safetensors_and_json_and_is_replaced_whole(agent, env, tmp_path):
    agent.save(tmp_path / "agent")
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]
    kinds = {p.suffix for p in (tmp_path / "agent").rglob("*") if p.is_file()}
    assert kinds == {".json", ".safetensors"}
    assert json.loads((tmp_path / "agent" / "agent.json").read_text())["state"]["episodes"] == 16
    loaded = LMPPO.load(tmp_path / "agent", env)
    observation, _ = env.reset(seed=3)
    np.testing.assert_array_equal(loaded.log_probs(observation), agent.log_probs(observation))
    np.testing.assert_array_equal(loaded.values(observation), agent.values(observation))


@pytest.mark.slow
def test_an_exported_policy_carries_its_tokenizer(tmp_path):
    tokenizer = chat_tokenizer("byte-level", "chatml")
    options = {"prompts": ["Hello"], "tokenizer": tokenizer, "max_new_tokens": 4}
    env = TokenVectorEnv(make_task("Text", **options), 4, autoreset_mode=AutoresetMode.DISABLED)
    config = Qwen2Config(
        vocab_size=env.task.vocabulary.size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    agent = RLOO(env.task, RLOOConfig(batch=4, device="cpu"), model=Qwen2ForCausalLM(config))
    agent.save(tmp_path / "agent")
    folder = tmp_path / "agent" / "model"
    exported = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab().items() <= exported.get_vocab().items()
    assert exported.chat_template == tokenizer.chat_template
    assert (
        applied(exported, "Hello?") == applied(tokenizer, "Hello?") == list(env.task.vocabulary.encode_prompt("Hello?"))
    )
    assert load_vocabulary(folder).stop_ids == env.task.vocabulary.stop_ids
    assert make_task("Text", **options | {"tokenizer": folder}).vocabulary.pad_id == env.task.vocabulary.pad_id


@pytest.mark.parametrize("kind", ["words", "bare", "python"])
def test_every_kind_of_tokenizer_is_written_as_hugging_face_reads_it(tmp_path, kind):
    made = {"words": ["x", "<pad>", "y"], "bare": bare("unigram"), "python": ByT5Tokenizer(extra_ids=2)}[kind]
    vocabulary = load_vocabulary(made)
    vocabulary.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "x y" if kind == "words" else "Hello world"
    ids = vocabulary.codec.encode(text)
    assert again(text, add_special_tokens=False).input_ids == ids
    assert again.decode(ids) == vocabulary.decode([ids])[0] == text
    assert again.pad_token_id == (vocabulary.pad_id if kind != "bare" else None)


@pytest.mark.slow
def test_frozen_parameters_stay_frozen_when_training_goes_on(task, env, tmp_path):
    model = tiny_llama(4)
    model.model.layers[0].requires_grad_(False)
    config = LMPPOConfig(batch=16, device="cpu", minibatches=1)
    whole = LMPPO(task, config, model=model)
    start = whole.policy.model.model.layers[0].mlp.up_proj.weight.clone()
    whole.learn(env, 16)
    whole.save(tmp_path / "agent")
    resumed = LMPPO.load(tmp_path / "agent", env)
    for agent in (whole, resumed):
        agent.learn(env, 16)
    for (name, one), two in zip(whole.policy.named_parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, two), name
        assert one.requires_grad == two.requires_grad == (".layers.0." not in name)
    assert torch.equal(start, resumed.policy.model.model.layers[0].mlp.up_proj.weight)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_gradient_checkpointing_keeps_less_and_has_the_same_gradient(task, make, tmp_path, env):
    kept, gradients = [], []
    model = make(4)
    model.gradient_checkpointing_enable()  # asks for it as the setting does
    for start, asked in ((make(4), False), (make(4), True), (model, False)):
        agent = LMPPO(task, LMPPOConfig(batch=16, device="cpu", gradient_checkpointing=asked), model=start)
        # Without the setting it would be the hand-written Llama where there is one.
        assert isinstance(agent.policy.backbone, HuggingFaceBackbone) or start is not model
        agent.policy.backbone = HuggingFaceBackbone(agent.policy.model)
        rows = torch.arange(8)
        size = 0

        def count(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            ids = torch.randint(4, (8, 20), generator=torch.Generator().manual_seed(0))
            logits, values = agent.policy.states(ids, rows, rows)
        (logits.log_softmax(-1)[:, 0].sum() + values.sum()).backward()
        kept.append(size)
        gradients.append([p.grad for p in agent.policy.parameters()])
    assert kept[1] == kept[2] < kept[0] / 2
    for checkpointed in gradients[1:]:
        for one, two in zip(gradients[0], checkpointed, strict=True):
            assert (one is None) == (two is None)
            assert one is None or torch.equal(one, two)
    assert agent.config.gradient_checkpointing
    agent.save(tmp_path / "agent")
    assert LMPPO.load(tmp_path / "agent", env).config.gradient_checkpointing


@pytest.mark.slow
def test_gradient_checkpointing_learns_what_is_learnt_without_it(task, env):
    agents = []
    for asked in (False, True):
        agent = LMPPO(
            task,
            LMPPOConfig(batch=16, device="cpu", minibatches=2, gradient_checkpointing=asked),
            model=tiny_gpt2(4),
        )
        agent.learn(env, 32)
        agents.append(agent)
    for one, two in zip(*(agent.policy.parameters() for agent in agents), strict=True):
        assert torch.equal(one, two)


def test_a_model_without_layers_that_can_run_again_is_refused(task):
    with pytest.raises(ValueError, match="gradient_checkpointing=True: Linear has no layers"):
        recompute_layers(torch.nn.Linear(2, 2))


def test_an_agent_without_a_critic_has_no_values(task, env):
    agent = RLOO(task, RLOOConfig(batch=16, device="cpu"), model=tiny_llama(4))
    with pytest.raises(ValueError, match="agent 'rloo' has no critic"):
        agent.values(env.reset(seed=0)[0])


def test_loading_what_is_no_agent_says_so(env, tmp_path):
    with pytest.raises(ValueError, match="no saved agent there"):
        LMPPO.load(tmp_path, env)


@pytest.mark.slow
def test_a_crash_between_two_renames_loses_no_checkpoint(agent, env, tmp_path):
    agent.save(tmp_path / "agent")
    (tmp_path / "agent").rename(tmp_path / ".agent-old")
    (tmp_path / ".agent-new").mkdir()  # half written
    assert LMPPO.load(tmp_path / "agent", env).episodes == 0
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    assert LMPPO.load(tmp_path / "agent", env).episodes == 16
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]


def test_a_gradient_that_is_not_finite_stops_learning_before_the_step(env, agent):
    with torch.no_grad():
        agent.policy.value_head.weight.fill_(torch.inf)
    before = agent.policy.model.lm_head.weight.clone()
    with pytest.raises(FloatingPointError, match="iteration 0: the gradient is not finite"):
        agent.learn(env, 16)
    assert torch.equal(agent.policy.model.lm_head.weight, before)


def test_fewer_episodes_than_minibatches_are_no_error(task):
    env = TokenVectorEnv(task, 2, autoreset_mode=AutoresetMode.DISABLED)
    agent = tiny_agent(task, minibatches=8)
    assert first_metrics(agent, env)["updates"] == 2 * agent.config.epochs


def test_a_model_of_the_agents_own_is_its_own_reference(env, task):
    agent = LMPPO(task, LMPPOConfig(batch=16, device="cpu"), model=tiny_llama(4))
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(agent.own_reference().log_probs(observation), agent.log_probs(observation), atol=1e-6)
    assert LMPPO(make_task("Bandit"), LMPPOConfig(device="cpu")).own_reference() is None


def test_a_damaged_checkpoint_is_one_clear_error(agent, env, tmp_path):
    agent.save(tmp_path / "agent")
    (tmp_path / "agent" / "tensors.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="the saved agent is damaged"):
        LMPPO.load(tmp_path / "agent", env)


@pytest.mark.parametrize("value", [["a rate"], 3, None])
def test_what_chose_the_rate_is_a_text(agent, env, tmp_path, value):
    agent.save(tmp_path / "agent")
    head = json.loads((tmp_path / "agent" / "agent.json").read_text())
    head["state"]["chosen"] = value
    (tmp_path / "agent" / "agent.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match=f"or is damaged .*chosen={re.escape(repr(value))}: allowed is a text"):
        LMPPO.load(tmp_path / "agent", env)


def test_a_model_with_too_few_positions_is_refused():
    with pytest.raises(ValueError, match="reads at most 64 tokens but a state has up to 102"):
        LMPPO(tiny_task(max_new_tokens=100), LMPPOConfig(device="cpu"), model=tiny_llama(4))


def test_bfloat16_autocast_learns_with_float32_parameters(env, task):
    agent = tiny_agent(task, precision="bfloat16", minibatches=1)
    metrics = first_metrics(agent, env)
    assert metrics["val/first_ratio"] == pytest.approx(1.0, abs=0.05)  # seven bits of mantissa
    assert all(p.dtype == torch.float32 for p in agent.policy.parameters())
    assert np.isfinite(metrics["policy/grad_norm"])
    assert metrics["policy/grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bart", "mamba", "qwen3_next", "roberta"])
@pytest.mark.filterwarnings("ignore:.*reads a whole row again")
def test_an_agent_of_any_architecture_starts_at_its_reference(env, task, kind):
    settings = LMPPOConfig(batch=16, minibatches=1, epochs=1, device="cpu", learning_rate=1e-4)
    agent = LMPPO(task, settings, model=zoo_model(kind, vocab_size=4))
    metrics = first_metrics(agent, env)
    assert metrics["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["policy/grad_norm"] > 0


def test_a_model_that_is_not_causal_is_refused_by_name_when_the_agent_is_made(task):
    model = zoo_model("xlnet", vocab_size=4)
    with pytest.raises(ValueError, match=r"model: XLNetLMHeadModel cannot be used.*nats"):
        LMPPO(task, LMPPOConfig(batch=16, device="cpu"), model=model)


@pytest.mark.parametrize(("settings", "used"), [({}, 1.0), ({"beta": 0.3}, 0.3), ({"kl_target": 2.0}, 0.1)])
def test_a_loaded_agent_has_the_beta_of_its_config_or_of_the_task(tmp_path, settings, used):
    old, new = (make_env("textgym/Stop-v0", 8, beta=beta) for beta in (0.1, 1.0))
    make_agent("lm-ppo", old, device="cpu", **settings).save(tmp_path / "agent")
    assert load_agent(tmp_path / "agent", new).controller.beta == used


def test_the_values_of_a_loaded_agent_are_charged_the_beta_that_they_were_learned_with(tmp_path):
    old, new = (make_env("textgym/Stop-v0", 8, beta=beta) for beta in (0.1, 1.0))
    make_agent("lm-ppo", old, device="cpu", kl="exact").save(tmp_path / "agent")
    agent = load_agent(tmp_path / "agent", new)
    assert (agent.controller.beta, uncharged(agent)) == (1.0, 0.1)
    agent.save(tmp_path / "again")
    assert uncharged(load_agent(tmp_path / "again", new)) == 0.1
    agent.learn(new, 8)
    assert uncharged(agent) == 1.0


def test_values_are_scaled_by_the_first_returns_that_differ():
    agent = make_agent("lm-ppo", make_env("textgym/Stop-v0", 8), device="cpu")
    assert agent._centre_values(np.zeros(4)) == (1.0, 0.0)
    assert agent.value_scale is None
    assert agent._centre_values(np.array([0.0, 2000.0])) == (1000.0, 1000.0)
    assert agent._centre_values(np.array([0.0, 2.0])) == (1000.0, 1000.0)
