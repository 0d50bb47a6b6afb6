"""What every agent on a language model does with settings, checkpoints, and models and environments that do not fit."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agents.enumerated import count_a, first_metrics, tiny_agent, tiny_task
from chat_tools import applied, bare, chat_tokenizer
from gymnasium.vector import AutoresetMode, VectorWrapper
from lm.tiny_models import tiny_gpt2, tiny_llama
from lm.zoo import zoo_model
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.rloo import RLOO, RLOOConfig
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.metrics import settled
from transformers import AutoTokenizer, ByT5Tokenizer, Qwen2Config, Qwen2ForCausalLM

from textgym import TokenVectorEnv, load_vocabulary, make_task
from textgym.lm.backbone import HuggingFaceBackbone, recompute_layers
from textgym.play import check_env


def test_an_update_stops_early_when_the_policy_has_moved_too_far(env, task):
    agent = tiny_agent(task, stop_update_kl=1e-9, minibatches=4, epochs=3)
    assert first_metrics(agent, env)["updates"] == 2  # the first step moves it, the second sees that it did


def test_environments_that_reset_by_themselves_are_refused(task):
    with pytest.raises(ValueError, match="autoreset_mode=DISABLED"):
        check_env(TokenVectorEnv(task, 2))


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


def test_a_crash_between_two_renames_loses_no_checkpoint(agent, env, tmp_path):
    agent.save(tmp_path / "agent")
    (tmp_path / "agent").rename(tmp_path / ".agent-old")
    (tmp_path / ".agent-new").mkdir()  # half written
    assert LMPPO.load(tmp_path / "agent", env).episodes == 0
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    assert LMPPO.load(tmp_path / "agent", env).episodes == 16
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]


def test_a_tiny_start_has_its_own_learning_rate_which_a_checkpoint_keeps(tmp_path):
    task = make_task("Bandit")
    env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
    agent = LMPPO(task, LMPPOConfig(batch=16, device="cpu"))
    assert agent.learning_rate == 3e-3
    agent.save(tmp_path / "agent")
    assert LMPPO.load(tmp_path / "agent", env).learning_rate == 3e-3
    assert LMPPO(task, LMPPOConfig(batch=16, device="cpu", learning_rate=0.1)).learning_rate == 0.1
    assert tiny_agent().learning_rate == 5e-4


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


@pytest.mark.parametrize("kl", ["exact", "k1"])
def test_what_the_first_batch_has_moved_settles_the_learning_rate(kl, tmp_path):
    task = make_task("Helpful")
    config = RLOOConfig(batch=16, epochs=1, minibatches=2, kl=kl, schedule="constant", device="cpu", update_kl=0.32)

    def fresh():
        env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
        env.reset(seed=0)
        return env

    rows, broken, env, again = [], RLOO(task, config), fresh(), fresh()
    whole, seen = RLOO(task, config), []

    def spy(rate, rollout, log_ratios, gamma, *rest):
        places = torch.tensor(rollout.rows), torch.tensor(rollout.columns)
        with torch.no_grad():
            logits = (each.model(rollout.input_ids).logits[places] for each in (whole.policy, whole.reference))
            own, base = (torch.log_softmax(each, -1).gather(1, rollout.actions[:, None])[:, 0] for each in logits)
        seen.append((np.bincount(rollout.rows, own - base), np.bincount(rollout.rows, rollout.rewards), gamma))
        return settled(rate, rollout, log_ratios, gamma, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("textgym_agents.algorithms.ppo.settled", spy)
        whole.learn(env, 48, lambda row: rows.append(row))
    ((moves, found, gamma),) = seen
    moved, correlation = float(np.mean(moves**2) / 2), float(np.corrcoef(moves, found)[0, 1])
    assert (moved > 0, gamma) == (True, task.gamma)
    wanted = 0.32 * max(correlation, 0.1) * 16 / 256
    rate = 1.25e-4 * min(max((wanted / moved) ** 0.5, 0.1), 30)
    assert [row["lr"] for row in rows] == pytest.approx([1.25e-4, rate, rate], rel=1e-3)
    assert f"moved the policy by {moved:.3g} nats" in whole.chosen
    assert f"scores correlate by {correlation:.3g})" in whole.chosen
    # A checkpoint before it is settled loses nothing.
    broken.learn(again, 48, lambda row: True)
    broken.save(tmp_path / "agent")
    other = RLOO.load(tmp_path / "agent", again)
    other.learn(again, 32)
    assert other.learning_rate == whole.learning_rate
    other.save(tmp_path / "settled")  # what is settled stays so
    later = RLOO.load(tmp_path / "settled", again)
    later.learn(again, 16)
    assert later.learning_rate == whole.learning_rate
    assert torch.equal(other.policy.model.lm_head.weight, whole.policy.model.lm_head.weight)


def test_the_value_head_has_a_rate_of_its_own_and_what_is_trained_is_whole(env, task):
    settings = {"epochs": 1, "minibatches": 1, "learning_rate": 1e-3, "value_coefficient": 0.5, "value_rate": 7.0}
    agent = tiny_agent(task, batch=16, **settings)
    owned = [id(each) for group in agent.optimizer.param_groups for each in group["params"]]
    assert owned == [id(each) for each in agent.policy.parameters()]
    before = [each.detach().clone() for each in agent.policy.parameters()]
    first_metrics(agent, env)
    moved = [float((new - old).abs().max()) for new, old in zip(agent.policy.parameters(), before, strict=True)]
    assert moved[-2:] == pytest.approx([7e-3, 7e-3], rel=0.05)  # Adam's first step is the rate
    assert max(moved[:-2]) == pytest.approx(1e-3, rel=0.05)


def test_a_learning_rate_that_is_given_stays(tmp_path):
    task = make_task("Helpful")
    agent = RLOO(task, RLOOConfig(batch=16, learning_rate=1e-4, schedule="constant", device="cpu"))
    env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
    rows = []
    agent.learn(env, 32, lambda row: rows.append(row))
    assert [row["lr"] for row in rows] == [1e-4, 1e-4]
    assert agent.chosen == ""
    with pytest.raises(ValueError, match=r"update_kl=0.5: allowed is 1.5 with a learning_rate"):
        RLOOConfig(learning_rate=1e-4, update_kl=0.5)


@pytest.mark.parametrize(
    ("rewards", "move", "moved", "correlation", "factor"),
    [
        ([1.0, 0.0, 1.0, 0.0], 1.0, 0.75, 2 / 5**0.5, (2 / 5**0.5 / 0.75) ** 0.5),
        ([1e-9, 0.0, 1e-9, 0.0], 1.0, 0.75, 2 / 5**0.5, (2 / 5**0.5 / 0.75) ** 0.5),  # in any unit
        ([0.0, 1.0, 0.0, 1.0], 1.0, 0.75, -2 / 5**0.5, (0.1 / 0.75) ** 0.5),  # the move has made the reward worse
        ([1.0, 1.0, 1.0, 1.0], 1.0, 0.75, 0.0, (0.1 / 0.75) ** 0.5),
        ([1.0, 0.0, 1.0, 0.0], 0.01, 7.5e-5, 2 / 5**0.5, 30),
        ([1.0, 0.0, 1.0, 0.0], 100.0, 7500.0, 2 / 5**0.5, 0.1),
    ],
)
@pytest.mark.parametrize(("gamma", "rounds"), [(1.0, 1), (0.5, 2)])
def test_the_rate_follows_what_was_moved_and_where_within_bounds(
    rewards, move, moved, correlation, factor, gamma, rounds
):
    """By hand: log-ratios of 1, -1, 2 and 0 have the mean 1/2 and the variance 5/4, and the scores that of 1/4."""
    rollout = SimpleNamespace(
        rows=np.array([0, 0, 1, 2, 3]),
        steps=np.array([0, 1, 0, 0, 0]),
        rewards=np.array([0.0, rewards[0] / gamma, *rewards[1:]]),
        lengths=np.array([2, 1, 1, 1]),
        rounds=rounds,
    )
    log_ratios = move * np.array([3.0, -2.0, -1.0, 2.0, 0.0])
    rate, why = settled(1e-5, rollout, log_ratios, gamma, RLOOConfig(update_kl=64.0 * rounds))
    assert rate == pytest.approx(1e-5 * factor)
    toward = max(correlation, 0.1)
    assert f"moved the policy by {moved:.3g} nats a sequence, wanted are {toward:.3g} " in why
    assert f"times {toward:.3g}: log-ratios and scores correlate by {correlation:.3g})" in why
    assert settled(1e-5, rollout, 0 * log_ratios, gamma, RLOOConfig()) == (1e-5, "")


def test_the_rate_waits_for_a_batch_from_which_something_was_learned():
    task = tiny_task()
    agent = RLOO(task, RLOOConfig(batch=8, device="cpu", schedule="constant", kl="k1"))
    agent.settles, agent.learning_rate, agent.first_rate = True, 1e-4, 1e-4
    env, paid = TokenVectorEnv(task, 8, autoreset_mode=AutoresetMode.DISABLED), [0.0, 0.0, 1.0, 1.0]
    collect, rows = agent._collect, []

    def collected(*arguments):
        rollout = collect(*arguments)
        return dataclasses.replace(rollout, rewards=paid[agent.iteration] * np.arange(len(rollout.rewards)))

    agent._collect = collected
    agent.learn(env, 32, lambda row: rows.append(row["lr"]))
    assert rows[:3] == [1e-4] * 3  # the third batch is the first that teaches
    assert rows[3] != 1e-4
    assert agent.chosen
