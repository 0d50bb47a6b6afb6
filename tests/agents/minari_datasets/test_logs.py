"""Logs of JSON lines: written and read back to the last bit, learned from, and refused with the line and what fits."""

import json
import shutil

import numpy as np
import pytest
from agents.enumerated import tiny_agent, tiny_task
from hypothesis import given
from hypothesis import strategies as st
from textgym_agents.datasets import is_recording, play_episodes, read_recording, write_log

from textgym import make_task
from textgym.rewards import TextGymWarning
from textgym.state import POLICY, PROMPT


@pytest.fixture(scope="module")
def actor():
    return tiny_agent(tiny_task())


@pytest.fixture
def good(actor, tmp_path):
    write_log(tmp_path / "log.jsonl", play_episodes(actor, actor.task, 6, seed=3))
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def paid(log):
    """The pay for each token (N,), row by row."""
    return log.sequences.rewards[log.sequences.places()]


def test_rewards_are_discounted_from_the_first_token_whatever_the_prompts_length(tmp_path):
    task = tiny_task(gamma=0.5, max_new_tokens=3)
    ids = [0, 1, 0]
    rows = [{"prompt": prompt, "completion_ids": ids, "rewards": [1, 2, 4]} for prompt in ("a b", "c")]
    log = read_recording(written(tmp_path / "x.jsonl", rows), task)
    assert paid(log).tolist() == [1, 1, 1] * 2
    assert log.returns.tolist() == [3, 3]
    assert log.sequences.rewards.sum() == 6


@pytest.mark.parametrize("more", [{}, {"ended": True}, {"ended": False}])
def test_an_empty_text_is_refused_with_its_line_and_read_by_its_ids(actor, tmp_path, more):
    rows = [
        {"prompt": "a b", "completion": "a", "reward": 1},
        {"prompt": "c", "completion": "", "reward": 0.25, **more},
    ]
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: the completion is empty"):
        read_recording(written(tmp_path / "x.jsonl", rows), actor.task)
    log = read_recording(written(tmp_path / "x.jsonl", [rows[0], rows[1] | {"completion_ids": [3]}]), actor.task)
    assert log.sequences.lengths.tolist() == [2, 1]
    assert log.sequences.input_ids[1, log.sequences.starts[1]] == 3
    assert log.returns.tolist() == [1, 0.25]


def test_what_is_written_is_read_back(actor, tmp_path):
    episodes = list(play_episodes(actor, actor.task, 12, seed=1))
    assert write_log(tmp_path / "new" / "log.jsonl", iter(episodes)) == 12
    assert is_recording(tmp_path / "new" / "log.jsonl")
    log = read_recording(tmp_path / "new" / "log.jsonl", actor.task)
    for place, episode in enumerate(episodes):
        start, length = log.sequences.starts[place], log.sequences.lengths[place]
        np.testing.assert_array_equal(
            log.sequences.input_ids[place, : start + length], episode.input_ids[-1][: start + length]
        )
        assert log.authors[place, : start + length].tolist() == [PROMPT] * start + [POLICY] * length
    np.testing.assert_array_equal(paid(log), np.concatenate([each.rewards for each in episodes]))
    np.testing.assert_array_equal(log.log_probs, np.concatenate([each.log_probs for each in episodes]))
    np.testing.assert_allclose(log.log_prob_sums, [each.log_probs.sum() for each in episodes], atol=1e-12)
    assert log.sampled.all()


def test_rewards_on_the_way_and_sums_of_log_probs(actor, good, tmp_path):
    row = next(row for row in good if len(row["completion_ids"]) == 3)
    bare = {name: row[name] for name in ("prompt", "completion_ids")}
    rows = [
        bare | {"rewards": [0.5, 0, 1], "token_logprobs": -2.5},
        bare | {"reward": 2},
        {"prompt": "c", "completion": "a", "reward": -1, "ended": True, "note": "left alone"},
    ]
    log = read_recording(written(tmp_path / "x.jsonl", rows), actor.task)
    assert paid(log).tolist() == [0.5, 0, 1, 0, 0, 2, 0, -1]  # behind the text stands its end
    np.testing.assert_array_equal(log.log_prob_sums, [-2.5, np.nan, np.nan])
    assert np.isnan(log.log_probs).all()
    assert log.sampled.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "prompt is missing; needed are prompt, completion_ids or completion, reward"),
        ({"prompt": 3}, "prompt 3 is a int, allowed is a string|prompt"),
        ({"completion_ids": [99]}, r"completion_ids=99: allowed is an integer in 0\.\."),
        ({"completion_ids": []}, "0 tokens do not end it"),
        ({"completion_ids": "a"}, "'a' stands where a list is allowed"),
        ({"completion": "zebra"}, r"completion='zebra': its completion_ids are "),
        ({"reward": "much"}, "reward='much': allowed is a finite number"),
        ({"reward": None}, "reward=None, rewards=None: allowed is one of the two"),
        ({"rewards": [1.0]}, r"rewards=\[1.0\]: allowed is one of the two"),
        ({"reward": None, "rewards": [1.0] * 9}, "rewards: 9 numbers, allowed are"),
        ({"token_logprobs": [-1.0] * 9}, "token_logprobs: 9 numbers, allowed are"),
        ({"token_logprobs": 0.5}, "token_logprobs=0.5: allowed is"),
        ({"completion_ids": None}, "token_logprobs need completion_ids"),
    ],
)
def test_a_broken_row_is_named_with_what_is_allowed(change, message, actor, good, tmp_path):
    path = written(tmp_path / "x.jsonl", [good[0], good[1] | change, good[2]])
    with pytest.raises(ValueError, match=rf"x.jsonl, line 2: .*({message})") as caught:
        read_recording(path, actor.task)
    assert "\n" not in str(caught.value)
    with pytest.warns(TextGymWarning, match="1 of 3 rows are left out, first .*line 2"):
        assert len(read_recording(path, actor.task, "skip").returns) == 2


ODD = (None, True, 0, 1, -1, 10**400, 0.5, float("nan"), -1e308, "", "a", "a b", "\ud800", "\0", [], {}, [0], [0, 1])
JSON = st.sampled_from(ODD) | st.lists(st.sampled_from(ODD), max_size=3)
KEYS = ("prompt", "completion", "completion_ids", "token_logprobs", "reward", "rewards", "ended")


@pytest.mark.slow
@given(row=st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_row_is_read_or_refused_in_one_line(row, actor, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("rows") / "x.jsonl", [row])
    refused = ""
    try:
        log = read_recording(path, actor.task)
    except ValueError as error:
        refused = str(error)
    assert np.isfinite(log.returns).all() if not refused else "x.jsonl, line 1: " in refused
    assert len(refused.splitlines()) <= 1
    assert len(refused) < 800


def test_turns_need_a_minari_dataset(tmp_path):
    path = written(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b", "reward": 1}])
    with pytest.raises(ValueError, match="answers in turns; a file of rows"):
        read_recording(path, make_task("Clarify"))


def test_a_row_of_more_tokens_than_the_task_has_is_refused(tmp_path):
    row = {"prompt": "1", "completion_ids": [0] * 9 + [1], "token_logprobs": [-1.1] * 10, "reward": 1.0}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"line 1.* 10 tokens do not end it .* the most are 6"):
        read_recording(tmp_path / "long.jsonl", make_task("Stop"))


def test_a_log_is_one_wherever_its_rows_are(actor, tmp_path):
    write_log(tmp_path / "log.jsonl", play_episodes(actor, actor.task, 4, seed=1))
    (tmp_path / "folder").mkdir()
    for name in ("folder/log.jsonl", "log.json", "log"):
        shutil.copy(tmp_path / "log.jsonl", tmp_path / name)
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    assert all(is_recording(tmp_path / name) for name in ("log.jsonl", "folder", "log.json", "log", "saved"))


def test_preferences_with_a_column_of_rewards_are_no_log(tmp_path):
    row = {"prompt": "a b", "chosen": "a", "rejected": "b", "reward": 1.0}
    assert not is_recording(written(tmp_path / "x.jsonl", [row]))
    assert not is_recording(written(tmp_path / "y.jsonl", [{"prompt": "a", "completions": ["a", "b"], "reward": 1.0}]))
