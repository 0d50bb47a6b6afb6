"""Agents on T5- and BART-shaped models: what they say, learn, save and hand on, and what is refused by name."""

import json

import numpy as np
import pytest
import torch
from cli_tools import run
from gymnasium.vector import AutoresetMode
from lm.tiny_encdec import save_with_tokenizer, tiny_bart, tiny_t5
from textgym_agents import make_agent, make_env
from textgym_agents.algorithms.behaviour_cloning import BehaviourCloning, BehaviourCloningConfig
from textgym_agents.algorithms.dpo import DPO, DPOConfig
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.rloo import RLOO, RLOOConfig
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.checkpoint import export_model
from textgym_agents.lm.critic import branch, critic_of
from textgym_agents.lm.rollout import collect
from textgym_agents.lm.sequences import Sequences, of_rollout, sequence_log_probs
from textgym_agents.lm.shapes import model_config
from textgym_agents.rlhf.inputs import resize_model
from textgym_agents.rlhf.settings import SFTSettings
from textgym_agents.rlhf.sft import CompletionLoss, train_sft

from textgym import TokenVectorEnv, make_task
from textgym.lm.causal import load_adapter
from textgym.lm.scoring import Encoded
from textgym.preferences import Demonstration, Ranking, write_demonstrations, write_rankings
from textgym.solver import policy_values, solve

pytestmark = pytest.mark.slow

MODELS = pytest.mark.parametrize("make", [tiny_t5, tiny_bart])
START = {tiny_t5: 0, tiny_bart: 2}
COPY = 8  # tokens of the task's vocabulary
STOPS = ["a", "b", "c", "<end>", "?"]


def vector(task, batch=16):
    return TokenVectorEnv(task, batch, autoreset_mode=AutoresetMode.DISABLED)


def ragged():
    """Prompts of two to four words that end in ?, and completions of one to three."""
    texts = ["a ?", "b a ?", "c c ?", "a b c ?"]
    reward = {"name": "length", "target": 2, "unit": "words"}
    return make_task("Text", prompts=texts, tokenizer=STOPS, stop="<end>", reward=reward, max_new_tokens=3)


def shifted(model, scale=0.2):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in {id(each): each for each in model.parameters()}.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def plain(model, start, prompt, completion, allowed):
    """Log-probabilities (T, V) behind a prompt and along its completion, by the model's own forward."""
    written = torch.tensor([[start, *completion]])
    logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=written).logits[0]
    return logits.masked_fill(~torch.tensor(allowed), -1e9).log_softmax(-1)


def ppo(make, task, **settings):
    config = LMPPOConfig(**{"batch": 16, "minibatches": 2, "device": "cpu", **settings})
    return LMPPO(task, config, model=make(task.vocabulary.size))


@MODELS
def test_layers_that_run_again_give_the_same_gradient(make):
    gradients = []
    for again in (False, True):
        agent = ppo(make, ragged(), gradient_checkpointing=again)
        sequence_log_probs(agent.policy, Sequences.of([([0, 4], [1, 3]), ([1, 0, 4], [2])], 0)).sum().backward()
        found = [each.grad.flatten() for each in agent.policy.model.parameters() if each.grad is not None]
        gradients.append(torch.cat(found))
    torch.testing.assert_close(*gradients)


@MODELS
@pytest.mark.parametrize("kl", ["exact", "k1", "k2", "k3"])
def test_the_first_ratio_is_one_and_the_first_kl_is_zero(make, kl):
    agent, rows = ppo(make, ragged(), kl=kl, temperature=0.8), []
    before = {name: each.clone() for name, each in agent.reference.model.state_dict().items()}
    agent.learn(vector(agent.task), 32, rows.append)
    assert rows[0]["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert rows[1]["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert abs(rows[1]["objective/kl"]) > 1e-4
    assert all(torch.equal(each, before[name]) for name, each in agent.reference.model.state_dict().items())
    assert any(not torch.equal(each, before[name]) for name, each in agent.policy.model.state_dict().items())


@MODELS
def test_what_was_sampled_is_scored_as_the_plain_forward_does(make):
    agent = ppo(make, ragged())
    shifted(agent.policy.model)
    rollout = collect(vector(agent.task), agent.policy, 3, agent.task.vocabulary.stop_ids)
    sequences = of_rollout(rollout)
    assert set(sequences.starts) >= {2, 3}
    first, total = 0, []
    for ids, start, length in zip(sequences.input_ids, sequences.starts, sequences.lengths, strict=True):
        prompt, completion = ids[:start].tolist(), ids[start : start + length].tolist()
        with torch.no_grad():
            logs = plain(agent.policy.model, START[make], prompt, completion[:-1], agent.task.vocabulary.allowed)
        want = logs.gather(1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(rollout.log_probs[first : first + length], want, atol=1e-4, rtol=0)
        total.append(float(want.sum()))
        first += length
    got = sequence_log_probs(agent.policy, sequences)
    np.testing.assert_allclose(got.detach(), total, atol=1e-4)


@MODELS
def test_the_gradient_of_completions_reaches_encoder_and_decoder_as_plain_autograd_says(make):
    task = ragged()
    agent = ppo(make, task)
    rows = [([0, 4], [1, 3]), ([1, 0, 4], [2]), ([0, 1, 2, 4], [0, 0, 1])]
    sequence_log_probs(agent.policy, Sequences.of(rows, task.vocabulary.pad_id)).sum().backward()
    got = {name: each.grad.clone() for name, each in agent.policy.model.named_parameters() if each.grad is not None}
    agent.policy.zero_grad()
    for prompt, completion in rows:
        logs = plain(agent.policy.model, START[make], prompt, completion[:-1], task.vocabulary.allowed)
        logs.gather(1, torch.tensor(completion)[:, None]).sum().backward()
    assert any("encoder" in name for name in got)
    assert any("decoder" in name for name in got)
    for name, each in agent.policy.model.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(got[name], each.grad, atol=1e-4, rtol=1e-3)


@MODELS
def test_the_critic_and_branches_say_what_whole_rows_say(make):
    agent = ppo(make, ragged(), kl="k1")
    shifted(agent.policy)
    ids = np.array([[0, 4, 1, 1], [1, 0, 4, 2], [0, 1, 2, 4], [1, 0, 4, 0]])
    mask = (np.arange(4) < np.array([2, 4, 4, 3])[:, None]).astype(np.int8)  # at the end of a prompt, and behind it
    observation = {"input_ids": ids, "attention_mask": mask}
    np.testing.assert_allclose(critic_of(agent)(observation, None), agent.values(observation), atol=1e-5)
    rows, tokens = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    logits, values = branch(agent.policy, observation, rows, tokens)
    grown = torch.tensor([[0, 4, 2, 0, 0], [1, 0, 4, 2, 0], [1, 0, 4, 2, 1]])
    want = agent.policy.states(grown, torch.arange(3), torch.tensor([2, 4, 4]))
    torch.testing.assert_close(logits, want[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values, want[1], atol=1e-4, rtol=1e-4)


@pytest.mark.long
@MODELS
@pytest.mark.parametrize("named", [False, True])
def test_a_resumed_run_equals_one_that_went_on(make, named, tmp_path):
    task = make_task("Copy", difficulty=2)
    model = make(COPY)
    model.save_pretrained(tmp_path / "start")
    config = LMPPOConfig(batch=16, minibatches=2, device="cpu", model=str(tmp_path / "start") if named else None)
    agent, env = LMPPO(task, config, model=None if named else model), vector(task)
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    assert (tmp_path / "agent" / "reference").is_dir() is not named
    loaded = LMPPO.load(tmp_path / "agent", env)
    for each in (agent, loaded):
        each.learn(env, 16)
    for (name, one), two in zip(agent.policy.named_parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, two), name
    observation, _ = env.reset(seed=3)
    np.testing.assert_array_equal(agent.log_probs(observation), loaded.log_probs(observation))
    own = [each.own_reference().log_probs(observation) for each in (agent, loaded)]
    np.testing.assert_array_equal(*own)
    assert np.abs(own[0] - agent.log_probs(observation)).max() > 1e-4


@MODELS
def test_an_exported_policy_generates_what_the_agent_says(make, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    save_with_tokenizer(make, tmp_path / "start")
    task = make_task("Text", prompts=["Hello", "world is"], reference=str(tmp_path / "start"), max_new_tokens=3)
    agent, env = RLOO(task, RLOOConfig(batch=8, device="cpu", temperature=0.7, top_k=20)), vector(task, 8)
    agent.learn(env, 8)
    agent.save(tmp_path / "agent")
    export_model(tmp_path / "agent", tmp_path / "out")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.forced_bos_token_id is model.generation_config.forced_eos_token_id is None
    observation, _ = env.reset(seed=1)
    wanted = agent.log_probs(observation)
    for row, mask, want in list(zip(observation["input_ids"], observation["attention_mask"], wanted, strict=True))[:3]:
        ids = torch.tensor(row[None, : mask.sum()])
        found = model.generate(ids, max_new_tokens=1, output_scores=True, return_dict_in_generate=True)
        got, possible = found.scores[0].log_softmax(-1)[0].numpy(), want > -1e6
        assert (np.isfinite(got) == possible).all()
        np.testing.assert_allclose(got[possible], want[possible], atol=1e-4)


@pytest.mark.long
def test_the_command_line_trains_a_folder_and_hands_it_on(tmp_path, capsys):
    save_with_tokenizer(tiny_t5, tmp_path / "t5")
    model, out = str(tmp_path / "t5"), str(tmp_path / "run")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello\nworld is\n")
    env = ["--env", f"tokenizer={model}", "--env", f"prompts={prompts}", "--env", "max_new_tokens=3", "--device", "cpu"]
    quick = ["--final-per-prompt", "1", "--optimum-per-prompt", "0", "--batch", "8", "--minibatches", "1", *env]
    code, _, error = run(capsys, "train", "Text-v0", "--model", model, "--episodes", "16", "--out", out, *quick)
    assert code == 0, error
    code, _, error = run(capsys, "export", out, "--out", str(tmp_path / "out"))
    assert code == 0, error
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "out" / "README.md").read_text()
    code, _, error = run(capsys, "eval", "Text-v0", "--agent", f"hf:{tmp_path / 'out'}", *env[:-2], "--per-prompt", "1")
    assert code == 0, error


@MODELS
def test_turns_are_appended_to_the_decoder(make):
    env = make_env("textgym/TwentyQuestions-v0", 16)
    agent, rows = LMPPO(env.task, LMPPOConfig(batch=16, minibatches=1, device="cpu"), model=make(12)), []
    agent.learn(env, 32, rows.append)
    assert [row["val/first_ratio"] for row in rows] == pytest.approx([1.0, 1.0], abs=1e-5)


@MODELS
def test_the_loss_of_fine_tuning_is_that_of_completion_tokens_one_by_one(make):
    model, rows = make(), [Encoded([3, 10, 5, 6], 2, 0), Encoded([3, 8, 10, 4], 3, 0), Encoded([10, 5, 0, 1, 7], 1, 0)]
    loss = CompletionLoss(model, 10)
    want = 0.0
    for row in rows:
        prompt, completion = row.ids[: row.prompt_tokens], row.ids[row.prompt_tokens :]
        logs = plain(model, START[make], prompt, completion[:-1], np.ones(11, dtype=bool))
        want -= float(logs.gather(1, torch.tensor(completion)[:, None]).detach().sum())
    assert float(loss(**loss.collate(rows)).detach()) == pytest.approx(want, rel=1e-5)


@pytest.mark.long
@MODELS
def test_fine_tuning_from_a_folder_to_a_folder(make, tmp_path):
    save_with_tokenizer(make, tmp_path / "start")
    rows = [Demonstration(f"Hello {letter}", f"world {letter}") for letter in "abcdefghij"]
    write_demonstrations(tmp_path / "rows.jsonl", rows)
    settings = SFTSettings(
        base=str(tmp_path / "start"), data=str(tmp_path / "rows.jsonl"), epochs=3, batch=4, device="cpu"
    )
    result = train_sft(settings, tmp_path / "run")
    assert result["after"]["eval/loss"] < result["before"]["eval/loss"] - 0.1
    task = make_task("Text", prompts=["Hello a"], reference=str(tmp_path / "run" / "model"), max_new_tokens=2)
    assert task.vocabulary.after_ids
    make_agent("reference", vector(task, 2)).log_probs(vector(task, 2).reset(seed=0)[0])


@pytest.mark.long
def test_dpo_and_cloning_learn_from_files(tmp_path):
    task = ragged()
    write_rankings(tmp_path / "pairs.jsonl", [Ranking("a ?", ("b b", "c"), (True, True))])
    write_demonstrations(tmp_path / "texts.jsonl", [Demonstration("b a ?", "b b")])
    for agent, key in (
        (DPO(task, DPOConfig(data=str(tmp_path / "pairs.jsonl"), device="cpu", batch=2), model=tiny_t5(5)), "dpo"),
        (
            BehaviourCloning(
                task, BehaviourCloningConfig(data=str(tmp_path / "texts.jsonl"), device="cpu", batch=2), tiny_bart(5)
            ),
            "cloning",
        ),
    ):
        rows = [([0, 4], [1, 1, 3]), ([0, 4], [2, 3])] if key == "dpo" else [([1, 0, 4], [1, 1, 3])] * 2
        before = sequence_log_probs(agent.policy, Sequences.of(rows, 0)).detach()
        agent.learn(vector(task, 2), 40)
        gain = sequence_log_probs(agent.policy, Sequences.of(rows, 0)).detach() - before
        assert gain[0] - (gain[1] if key == "dpo" else 0) > 0.1


def test_what_is_not_for_encoder_decoders_is_refused_by_name(tmp_path, monkeypatch):
    task = make_task("Copy", difficulty=2)
    save_with_tokenizer(tiny_bart, tmp_path / "bart")
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_t5(COPY), peft.LoraConfig(target_modules=["q"]))
    with pytest.raises(ValueError, match="model: a PEFT adapter: T5ForConditionalGeneration is an encoder-decoder"):
        LMPPO(task, LMPPOConfig(device="cpu"), model=adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"model='.*adapter': a PEFT adapter: T5ForConditionalGeneration is an enc"):
        load_adapter(tmp_path / "adapter", tiny_t5(COPY))
    with pytest.raises(ValueError, match="lora_rank=4: T5ForConditionalGeneration is an encoder-decoder"):
        LMPPO(task, LMPPOConfig(lora_rank=4, device="cpu"), model=tiny_t5(COPY))
    with pytest.raises(ValueError, match=r"model='.*bart': an encoder-decoder, of which memory is not estimated"):
        model_config(tmp_path / "bart")
    with pytest.raises(ValueError, match=r"base='.*bart': the model is an encoder-decoder"):
        resize_model(str(tmp_path / "bart"), 3, tmp_path / "out")
    with pytest.raises(ValueError, match="task 'Recall': BartForConditionalGeneration reads a prompt apart"):
        LMPPO(make_task("Recall"), LMPPOConfig(device="cpu"), model=tiny_bart(12))
    short = tiny_bart(COPY)
    short.config.max_decoder_position_embeddings = task.max_new_tokens  # as LED's config has
    with pytest.raises(ValueError, match="its decoder reads at most 2 tokens but its start token and a completion"):
        LMPPO(task, LMPPOConfig(device="cpu"), model=short)
    monkeypatch.setattr("textgym_agents.lm.start.world_size", lambda: 2)
    with pytest.raises(ValueError, match="parallel='fsdp': T5ForConditionalGeneration is an encoder-decoder"):
        LMPPO(task, LMPPOConfig(parallel="fsdp", device="cpu"), model=tiny_t5(COPY))


def test_fine_tuning_without_an_end_of_prompts_is_refused(tmp_path):
    save_with_tokenizer(tiny_t5, tmp_path / "t5")
    file = tmp_path / "t5" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    write_demonstrations(tmp_path / "rows.jsonl", [Demonstration("Hello", "a"), Demonstration("world", "b")])
    settings = SFTSettings(base=str(tmp_path / "t5"), data=str(tmp_path / "rows.jsonl"), batch=4, device="cpu")
    with pytest.raises(ValueError, match=r"T5ForConditionalGeneration reads a prompt apart .* allowed are a tokenizer"):
        train_sft(settings, tmp_path / "run")


LEARNERS = [  # batch, episodes, learning rate, what else is set
    ("lm-ppo", tiny_t5, 64, 38400, 2e-3, {}),
    ("lm-ppo", tiny_bart, 64, 12800, 3e-3, {}),
    ("rloo", tiny_t5, 64, 25600, 3e-3, {}),
    ("rloo", tiny_bart, 64, 25600, 3e-3, {}),
    ("dpo", tiny_t5, 256, 102400, 3e-3, {"sampler": "policy"}),
    ("dpo", tiny_bart, 128, 51200, 3e-3, {}),
]


def start(make):
    """A model near the uniform distribution: BART's output layer is 0, that of T5, its embeddings, is turned down."""
    model = make(COPY, size=32, layers=1, tie_word_embeddings=make is tiny_t5)
    with torch.no_grad():
        if make is tiny_t5:
            model.decoder.final_layer_norm.weight.mul_(0.1)
        else:
            model.lm_head.weight.zero_()
    return model


@pytest.mark.long
@pytest.mark.parametrize(("name", "make", "batch", "episodes", "rate", "more"), LEARNERS)
def test_it_learns_copy(name, make, batch, episodes, rate, more, tmp_path):
    start(make).save_pretrained(tmp_path)
    env = make_env("textgym/Copy-v0", batch, difficulty=2)
    settings = {"batch": batch, "model": str(tmp_path), "learning_rate": rate, "schedule": "linear", "device": "cpu"}
    agent = make_agent(name, env, **settings, **more)
    agent.learn(env, episodes)
    task, reference = env.unwrapped.task, agent.own_reference()
    solution = solve(task, reference, split="train")
    assert solution.optimality(policy_values(solution.tree, agent, reference).objective) >= 0.9
