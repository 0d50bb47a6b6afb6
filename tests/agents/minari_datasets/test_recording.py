"""Recorded episodes: what Minari gives back is what the environment gave, and anybody's code can read it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from agents.enumerated import tiny_agent, tiny_task
from cli_tools import assert_one_line, environment, run
from gymnasium.vector import AutoresetMode
from textgym_agents import make_agent, make_env
from textgym_agents.datasets import play_episodes, record

from textgym import TokenEnv, TokenVectorEnv
from textgym.lm.reference import UniformReference, restricted
from textgym.sampling import play
from textgym.solver import solve
from textgym.state import TokenState
from textgym.task import make_reference

pytest.importorskip("minari")
pytest.importorskip("h5py")


def episodes_of(dataset):
    return list(dataset.iterate_episodes())


@pytest.fixture(scope="module")
def agent():
    return tiny_agent(tiny_task())


@pytest.fixture(scope="module")
def dataset(agent, tmp_path_factory):
    env = TokenVectorEnv(agent.task, 4, autoreset_mode=AutoresetMode.DISABLED)
    return record(agent, env, 40, tmp_path_factory.mktemp("minari") / "tiny-v0", seed=5)


@pytest.mark.slow
def test_replayed_in_the_environment_they_are_the_same_to_the_last_bit(agent, dataset):
    env = TokenEnv(agent.task)
    assert dataset.total_episodes == 40
    assert {episode.infos["prompt"][0] for episode in dataset} == {b"a b", b"c"}
    for episode in episodes_of(dataset):
        observation, info = env.reset(options={"prompt": episode.infos["prompt"][0].decode()})
        assert info["prompt_index"] == episode.infos["prompt_index"][0]
        for t, action in enumerate(episode.actions):
            for name in ("input_ids", "attention_mask"):
                np.testing.assert_array_equal(observation[name], episode.observations[name][t])
                assert observation[name].dtype == episode.observations[name].dtype
            observation, reward, terminated, truncated, info = env.step(action)
            assert (reward, terminated, truncated) == (
                episode.rewards[t],
                episode.terminations[t],
                episode.truncations[t],
            )
        np.testing.assert_array_equal(observation["input_ids"], episode.observations["input_ids"][-1])
        assert terminated
        assert info["completion"] == episode.infos["completion"][-1].decode()
        assert info["finish_reason"] == episode.infos["finish_reason"][-1].decode()
        for name, value in info["reward_terms"].items():
            assert episode.infos["reward_terms"][name][-1] == value


@pytest.mark.slow
def test_log_probs_are_those_of_the_agent_and_of_its_reference(agent, dataset):
    for episode in episodes_of(dataset)[:10]:
        seen = {name: array[:-1] for name, array in episode.observations.items()}
        places = np.arange(len(episode.actions)), episode.actions
        for name, policy in (("log_prob", agent), ("reference_log_prob", agent.own_reference())):
            assert np.isnan(episode.infos[name][0])
            np.testing.assert_allclose(episode.infos[name][1:], policy.log_probs(seen)[places], atol=1e-5)


@pytest.mark.slow
def test_the_seed_decides_and_tokens_are_drawn_from_the_policy(agent):
    first, again, other = (
        [episode.actions.tolist() for episode in play_episodes(agent, agent.task, 600, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other
    solution = solve(tiny_task())
    played = [e for e in play_episodes(solution, solution.tree.task, 4000) if e.prompt == "c"]
    for completion in solution.likeliest(1, 3):
        share = np.mean([tuple(episode.actions) == completion.tokens for episode in played])
        # 5 standard errors of 2,000 draws are at most 0.056.
        assert share == pytest.approx(completion.probability, abs=0.056)


def test_episodes_of_a_group_answer_the_same_prompt(agent):
    played = list(play_episodes(agent, agent.task, 300, per_prompt=3))
    prompts = np.array([episode.prompt for episode in played]).reshape(-1, 3)
    assert (prompts == prompts[:, :1]).all()
    assert set(prompts[:, 0]) == {"a b", "c"}


def test_greedy_episodes_have_log_probability_0(agent):
    (episode,) = play_episodes(agent, agent.task, 1, deterministic=True)
    seen = {"input_ids": episode.input_ids[:-1], "attention_mask": episode.attention_mask[:-1]}
    assert episode.actions.tolist() == agent.log_probs(seen).argmax(1).tolist()
    assert not episode.log_probs.any()


def test_what_a_policy_does_not_know_is_nan():
    env = make_env("textgym/Bandit-v0", 2)
    (episode,) = play_episodes(make_agent("best-of-n", env), env.unwrapped.task, 1)
    assert np.isnan(episode.log_probs).all()
    assert np.isfinite(episode.reference_log_probs).all()


def test_noise_can_be_played_again():
    env = TokenEnv("Noisy")
    for episode in play_episodes(make_agent("random", env), env.task, 5):
        env.set_state(TokenState(env.task.prompt(episode.prompt, "train"), (), episode_seed=episode.episode_seed))
        rewards = [env.step(action)[1] for action in episode.actions]
        assert rewards == episode.rewards.tolist()


def test_a_grammar_is_obeyed_and_its_log_probs_are_those_over_legal_tokens():
    env = TokenEnv("Json")
    (episode,) = play_episodes(make_agent("random", env), env.task, 1)
    env.reset(options={"prompt": episode.prompt})
    for action, log_prob in zip(episode.actions, episode.log_probs, strict=True):
        masks = env.action_masks()[None]
        assert masks[0, action]
        logs = UniformReference(env.task.vocabulary.allowed).log_probs({"input_ids": np.zeros((1, 1))})
        assert log_prob == pytest.approx(restricted(logs, masks)[0, action])
        env.step(action)


def test_a_nul_in_a_text_is_kept_in_the_tokens(tmp_path):
    task = tiny_task(reward=lambda prompts, completions, **columns: [0.0] * len(prompts))
    object.__setattr__(task.vocabulary, "decoder", lambda batch: ["x\0y"] * len(batch))
    (episode,) = record(make_agent("random", TokenEnv(task)), TokenEnv(task), 1, tmp_path / "nul-v0")
    assert episode.infos["completion"][-1].decode() == "x\u2400y"


@pytest.mark.long
@pytest.mark.slow
def test_plain_minari_reads_it_by_its_id_and_recovers_the_environment(tmp_path):
    """In another process, which knows nothing of this package until the environment is recovered."""
    root = tmp_path / "root"
    code = (
        "import minari, sys\n"
        "dataset = minari.load_dataset('lab/stop-random-v3')\n"
        "assert not any(name.startswith('textgym') for name in sys.modules)\n"
        "assert dataset.spec.dataset_id == 'lab/stop-random-v3' and dataset.total_episodes == 6\n"
        "import textgym\n"
        "env = dataset.recover_environment()\n"
        "episode = dataset[0]\n"
        "env.reset(options={'prompt': episode.infos['prompt'][0].decode()})\n"
        "print([env.step(action)[1] for action in episode.actions] == episode.rewards.tolist())\n"
    )
    variables = {**environment(), "MINARI_DATASETS_PATH": str(root)}
    words = ["record", "Stop-v0", "--agent", "random", "--episodes", "6", "--env", "difficulty=2"]
    words += ["--out", "lab/stop-random-v3", "--json"]
    root.mkdir(exist_ok=True)
    recorded = subprocess.run(
        [sys.executable, "-m", "textgym.cli", *words],
        cwd=root,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert recorded.returncode == 0, recorded.stderr
    assert json.loads(recorded.stdout)["dataset"] == "lab/stop-random-v3"
    read = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert read.stdout == "True\n", read.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ("--out", "recordings/helpful-v0")),
        (["--out", "{}/copy"], ("'copy' is no Minari id", "helpful-ppo-v0")),
        (["--out", "{}/there-v0"], ("there-v0", "is not overwritten")),
        (["--out", "{}/x-v0", "--episodes", "0"], ("episodes=0", "an integer in 1..")),
        (["--out", "{}/x-v0", "--episodes", "5", "--per-prompt", "2"], ("multiples of per_prompt=2",)),
    ],
)
def test_bad_commands_are_told_in_one_line(words, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    (tmp_path / "there-v0").mkdir()
    words = [word.format(tmp_path) for word in words]
    code, _, err = run(capsys, "record", "Copy-v0", "--agent", "random", *words)
    assert_one_line(code, err, *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["there-v0"]


class Told:
    """An agent that says one row of numbers, or acts."""

    def __init__(self, task, row=None, acts=None):
        self.task, self.row, self.acts = task, row, acts

    def log_probs(self, observation):
        if self.row is None:
            return None
        return np.tile(np.asarray(self.row, dtype=np.float64), (len(observation["input_ids"]), 1))

    def act(self, observation, deterministic=False):
        return self.acts(len(observation["input_ids"]))

    def own_reference(self):
        return None


def test_what_is_recorded_is_the_policy_that_is_evaluated():
    task = tiny_task()
    plain = list(play_episodes(Told(task, [np.log(0.5), np.log(0.25), np.log(0.25), -np.inf]), task, 20, seed=3))
    more = list(play_episodes(Told(task, [np.log(2) + 3, 3, 3, -np.inf]), task, 20, seed=3))
    for one, other in zip(plain, more, strict=True):
        assert one.actions.tolist() == other.actions.tolist()
        np.testing.assert_allclose(one.log_probs, other.log_probs)
    # Probability on a token that is never legal is shared out among the others.
    copy = make_env("textgym/Copy-v0", 2).unwrapped.task
    for episode in play_episodes(Told(copy, np.zeros(copy.vocabulary.size)), copy, 50):
        assert copy.vocabulary.allowed[episode.actions].all()
        np.testing.assert_allclose(episode.log_probs, -np.log(copy.vocabulary.allowed.sum()))


@pytest.mark.parametrize(
    ("row", "acts", "message"),
    [
        ([np.nan] * 4, None, "policy: log_probs holds NaN"),
        ([0.0] * 3, None, r"policy: log_probs returned shape \(1, 3\), allowed is \(1, 4\)"),
        (None, lambda rows: np.full(rows, 1.7), r"policy: act returned float64 \(1,\), allowed are integers \(1,\)"),
        (None, lambda rows: np.ones(rows + 5, int), r"act returned int64 \(6,\), allowed are integers \(1,\)"),
        (None, lambda rows: None, r"act returned object \(\), allowed are integers"),
        (None, lambda rows: 1, r"act returned int64 \(\), allowed"),
        (None, lambda rows: np.array(["1"] * rows), "act returned <U1"),
        (None, lambda rows: (np.ones(rows, int), None), "act returned .*, allowed are integers"),
    ],
)
def test_what_an_agent_says_is_checked_where_it_is_recorded_and_where_it_is_evaluated(row, acts, message):
    task = tiny_task()
    with pytest.raises(ValueError, match=message):
        list(play_episodes(Told(task, row, acts), task, 1))
    with pytest.raises(ValueError, match=message):
        play(Told(task, row, acts), task, per_prompt=1, prompt_index=[0])


def test_a_policy_that_writes_into_what_it_sees_changes_nothing():
    task = tiny_task()
    reference = make_reference(task)

    class Scribbles(Told):
        def log_probs(self, observation):
            found = np.array(reference.log_probs({name: array.copy() for name, array in observation.items()}))
            observation["input_ids"][:] = 1
            observation["attention_mask"][:] = 1
            return found

    assert np.abs(play(Scribbles(task), task, reference=reference).kl).max() < 1e-9
    for episode in play_episodes(Scribbles(task), task, 4):
        np.testing.assert_allclose(episode.log_probs, episode.reference_log_probs)
        assert not episode.attention_mask[0].all()
