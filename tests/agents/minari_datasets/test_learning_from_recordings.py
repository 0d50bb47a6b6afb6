"""Behaviour cloning and DPO from Minari datasets: which tokens they take, what they learn, what they refuse."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from agents.enumerated import tiny_agent, tiny_task
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.algorithms.dpo import DPO
from textgym_agents.datasets import Recording, read_recording, record
from textgym_agents.lm.sequences import Sequences, sequence_log_probs

from textgym import TokenEnv, TokenVectorEnv, make_task
from textgym.rewards import TextGymWarning
from textgym.solver import policy_values, solve

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def actor():
    return tiny_agent(tiny_task())


@pytest.fixture(scope="module")
def recorded(actor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny-v0"
    record(actor, TokenEnv(actor.task), 24, folder, per_prompt=2, seed=3)
    return folder


@pytest.fixture
def folder(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "tiny-v0")


def pair_env():
    return TokenVectorEnv(tiny_task(), 8, autoreset_mode=AutoresetMode.DISABLED)


@pytest.mark.slow
def test_tokens_and_returns_are_those_recorded(actor, recorded):
    recording = read_recording(recorded, actor.task)
    episodes = list(minari.MinariDataset(recorded / "data"))
    sequences = recording.sequences
    for place, episode in enumerate(episodes):
        start, length = sequences.starts[place], sequences.lengths[place]
        prompt = {b"a b": [0, 1], b"c": [2]}[episode.infos["prompt"][0]]
        assert sequences.input_ids[place, : start + length].tolist() == [*prompt, *episode.actions]
        assert recording.returns[place] == episode.rewards.sum()
    # The policy that wrote them gives each the log-probability that was recorded.
    sums = [episode.infos["log_prob"][1:].sum() for episode in episodes]
    np.testing.assert_allclose(sequence_log_probs(actor.policy, sequences).detach(), sums, atol=1e-4)


def test_returns_are_discounted(recorded, actor):
    task = replace(actor.task, gamma=0.5)
    whole, half = read_recording(recorded, actor.task), read_recording(recorded, task)
    np.testing.assert_allclose(half.returns, whole.returns * 0.5 ** (whole.sequences.lengths - 1))


@pytest.mark.slow
def test_what_a_text_could_not_say_is_kept(tmp_path):
    """Which of two stop tokens ended it, and whether one did at all, stays as it was."""
    task = make_task(
        "Text",
        prompts=["a b"],
        tokenizer=("a", "b", "<end>", "<eos>"),
        stop=["<end>", "<eos>"],
        reward=lambda prompts, completions, **columns: [0.0] * len(prompts),
        max_new_tokens=3,
    )
    env = TokenEnv(task)
    dataset = record(make_agent("random", env), env, 60, tmp_path / "x-v0")
    sequences = read_recording(tmp_path / "x-v0", task).sequences
    kept = [
        tuple(ids[start : start + length].tolist())
        for ids, start, length in zip(sequences.input_ids, sequences.starts, sequences.lengths, strict=True)
    ]
    assert kept == [tuple(episode.actions.tolist()) for episode in dataset]
    assert {tokens[-1] for tokens in kept if len(tokens) < 3} == {2, 3}


def sequences_of(prompts, returns):
    ids = np.array([[prompt, 0, 0] for prompt in prompts])
    rewards = np.array(returns)[:, None] * [0.0, 0.0, 1.0]
    return Sequences(ids, np.ones(len(ids), dtype=np.int64), np.full(len(ids), 2), rewards=rewards)


@pytest.mark.slow
@given(
    returns=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30),
    share=st.floats(0.01, 1.0),
)
def test_the_best_share_has_the_greatest_returns(returns, share):
    recording = Recording(sequences_of([0] * len(returns), returns))
    best = recording.best(share).tolist()
    rest = sorted(set(range(len(returns))) - set(best))
    assert len(best) == max(1, min(int(np.ceil(share * len(returns) - 1e-9)), len(returns)))
    assert all(returns[i] > returns[j] or (returns[i] == returns[j] and i < j) for i in best for j in rest)


@given(prompts=st.lists(st.integers(1, 3), min_size=2, max_size=20))
def test_pairs_answer_the_same_prompt_and_use_no_episode_twice(prompts):
    recording = Recording(sequences_of(prompts, np.zeros(len(prompts))))
    counts = [prompts.count(prompt) for prompt in set(prompts)]
    if max(counts) < 2:
        with pytest.raises(ValueError, match="no two of its episodes answer the same prompt"):
            recording.pairs()
        return
    if any(count % 2 for count in counts):
        with pytest.warns(TextGymWarning, match=f"^{sum(count % 2 for count in counts)} of {len(prompts)} "):
            pairs = recording.pairs()
    else:
        pairs = recording.pairs()
    assert len(pairs) == sum(count // 2 for count in counts)
    assert len(set(pairs.ravel())) == pairs.size
    assert all(prompts[first] == prompts[second] for first, second in pairs)


@pytest.mark.slow
def test_dpo_puts_the_better_of_each_pair_first(recorded, actor):
    env = pair_env()
    agent = make_agent("dpo", env, data=str(recorded), noise=1e-6, **CPU)
    agent.learn(env, 8)
    recording = read_recording(recorded, actor.task)
    returns = {
        tuple(ids[: start + length].tolist()): value
        for ids, start, length, value in zip(
            recording.sequences.input_ids,
            recording.sequences.starts,
            recording.sequences.lengths,
            recording.returns,
            strict=True,
        )
    }
    data = agent._data
    rows = [
        tuple(ids[: start + length].tolist())
        for ids, start, length in zip(data.input_ids, data.starts, data.lengths, strict=True)
    ]
    assert len(rows) == 24
    assert all(returns[good] >= returns[bad] for good, bad in zip(rows[::2], rows[1::2], strict=True))
    assert any(returns[good] > returns[bad] for good, bad in zip(rows[::2], rows[1::2], strict=True))


def test_dpo_labels_err_as_an_annotator_of_its_temperature_does():
    """Returns 0 and 1 at noise 1: the better one is chosen with probability sigmoid(1) = 0.731."""
    agent = DPO(tiny_task(), DPO.config_type(data="unread", noise=1.0, seed=4, **CPU))
    ids = np.tile([[1, 7, 0], [1, 8, 0]], (4000, 1))
    ones = np.ones(8000, dtype=np.int64)
    chosen = agent._select(Recording(Sequences(ids, ones, ones, rewards=np.tile([[0, 0, 0], [0, 1, 0]], (4000, 1)))))
    assert sorted(map(tuple, chosen.input_ids[:2, :2].tolist())) == [(1, 7), (1, 8)]
    assert (chosen.input_ids[::2, 1] == 8).mean() == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)


@pytest.mark.slow
def test_learning_goes_on_after_loading_and_other_data_are_noticed(recorded, folder, actor, tmp_path):
    env = pair_env()
    agent = make_agent("behaviour-cloning", env, data=str(folder), **CPU)
    agent.learn(env, 8)
    agent.save(tmp_path / "agent")
    load_agent(tmp_path / "agent", env).learn(env, 8)
    shutil.rmtree(folder)
    record(actor, env, 24, folder, seed=4)
    with pytest.raises(ValueError, match="other texts than learning began with"):
        load_agent(tmp_path / "agent", env).learn(env, 8)


@pytest.mark.slow
@pytest.mark.long
def test_cloning_the_recorded_optimum_leads_near_it(tmp_path):
    env = make_env("textgym/Bandit-v0", 64)
    solution = solve(env.unwrapped.task)
    record(solution, env, 512, tmp_path / "optimum-v0")
    agent = make_agent("behaviour-cloning", env, data=str(tmp_path / "optimum-v0"), **CPU)
    agent.learn(env, 1024)
    assert solution.optimality(policy_values(solution.tree, agent).objective) >= 0.9


@pytest.mark.slow
@pytest.mark.long
def test_cloning_the_best_of_random_episodes_is_better_than_they_are(tmp_path):
    env = make_env("textgym/Copy-v0", 64)
    record(make_agent("random", env), env, 512, tmp_path / "random-v0")
    agent = make_agent("behaviour-cloning", env, data=str(tmp_path / "random-v0"), best_share=0.1, **CPU)
    agent.learn(env, 1024)
    solution = solve(env.unwrapped.task)
    earned = policy_values(solution.tree, agent).expected_return
    assert earned > solution.reference.expected_return + 0.05


@pytest.mark.slow
@pytest.mark.long
def test_dpo_from_recorded_pairs_improves(tmp_path):
    env = make_env("textgym/Bandit-v0", 64)
    solution = solve(env.unwrapped.task)
    record(make_agent("reference", env), env, 512, tmp_path / "reference-v0", per_prompt=2)
    agent = make_agent("dpo", env, data=str(tmp_path / "reference-v0"), **CPU)
    agent.learn(env, 1024)
    assert solution.optimality(policy_values(solution.tree, agent).objective) >= 0.7


# What is refused


def learn(folder, env=None, agent="behaviour-cloning", **settings):
    env = env or pair_env()
    make_agent(agent, env, data=str(folder), **settings, **CPU).learn(env, 8)


def change_metadata(folder, **changes):
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del metadata[name]
        else:
            metadata[name] = {**metadata[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(metadata))


def change_file(folder, name, write):
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        write(file["episode_1"], name)


def put(value, at):
    def write(group, name):
        group[name][at] = value

    return write


def cut(group, name):
    group[name].resize(len(group[name]) - 1, axis=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: change_metadata(f, textgym={"task": "Copy"}), "recorded on task 'Copy', allowed here"),
        (lambda f: change_metadata(f, textgym={"vocabulary": "0"}), "recorded with another vocabulary"),
        (lambda f: change_metadata(f, observation_space=None), "has no observation_space"),
        (lambda f: change_metadata(f, total_episodes=30), "cannot be read"),
        (lambda f: (f / "data" / "metadata.json").write_text("{"), "no JSON can be read"),
        (lambda f: (f / "data" / "metadata.json").unlink(), "no Minari dataset there"),
        (lambda f: (f / "data" / "main_data.hdf5").unlink(), "cannot be read"),
        (lambda f: change_file(f, "actions", put(7, 0)), "episode 1: its actions are not the tokens"),
        (lambda f: change_file(f, "rewards", put(np.nan, -1)), "episode 1: a reward is not finite"),
        (lambda f: change_file(f, "rewards", cut), "episode 1 has"),
        (
            lambda f: change_file(f, "observations/attention_mask", put(0, -1)),
            "episode 1: an observation is not one token longer",
        ),
        (lambda f: change_file(f, "observations", lambda group, name: group.pop(name)), "cannot be read"),
    ],
)
def test_damaged_datasets_get_one_clear_error(spoil, message, folder):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        learn(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@given(share=st.floats(0.0, 0.999))
def test_a_file_that_was_cut_off_anywhere_is_never_half_read(recorded, tmp_path_factory, actor, share):
    folder = shutil.copytree(recorded, tmp_path_factory.mktemp("cut") / "cut-v0")
    path = folder / "data" / "main_data.hdf5"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="cannot be read"):
        read_recording(folder, actor.task)


def test_other_lengths_and_vocabularies_are_refused(folder):
    longer = tiny_task(max_new_tokens=5)
    with pytest.raises(ValueError, match="its spaces are"):
        read_recording(folder, longer)
    with pytest.raises(ValueError, match="recorded on task 'Text', allowed here are datasets of 'Bandit'"):
        learn(folder, make_env("textgym/Bandit-v0", 8))


@pytest.mark.slow
def test_without_our_metadata_a_dataset_is_judged_by_what_is_in_it(folder, actor):
    change_metadata(folder, textgym=None)
    assert len(read_recording(folder, actor.task).returns) == 24
    # Episodes that end before the task would end them, as a time limit's do.
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        place = next(i for i in range(24) if len(file[f"episode_{i}"]["actions"]) == 3)
        group = file[f"episode_{place}"]
        for name in ("actions", "rewards", "terminations", "truncations"):
            cut(group, name)
        for name in ("input_ids", "attention_mask"):
            cut(group["observations"], name)
    with pytest.raises(ValueError, match=f"episode {place}: 2 tokens do not end it"):
        read_recording(folder, actor.task)


@pytest.mark.slow
def test_the_share_needs_returns_and_dpo_needs_pairs(tmp_path, actor):
    with pytest.raises(ValueError, match=r"best_share=0.5: allowed is 1.0 without logged episodes"):
        make_agent("behaviour-cloning", make_env("textgym/Helpful-v0", 2), best_share=0.5)
    (tmp_path / "texts.jsonl").write_text('{"prompt": "c", "completion": "a"}\n')
    with pytest.raises(ValueError, match=r"best_share=0.5: allowed is 1.0 where data are texts without returns"):
        learn(tmp_path / "texts.jsonl", best_share=0.5)
    record(actor, TokenEnv(actor.task), 1, tmp_path / "one-v0")
    with pytest.raises(ValueError, match=r"one-v0': no two of its episodes answer the same prompt"):
        learn(tmp_path / "one-v0", agent="dpo")
