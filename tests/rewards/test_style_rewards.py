"""The rewards of style and of overlap: numbers by hand, the packages' documented examples, bad input."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from cli_tools import environment
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import NoRepeat, Scorer, Sentiment, make_reward


def ask(spec: Any, *texts: str, **columns: Any) -> Any:
    return make_reward(spec)(["p"] * len(texts), list(texts), **columns)


def test_sentiment_by_hand() -> None:
    # VADER's valence of "good" is 1.9 and its normalisation x / sqrt(x^2 + 15).
    compound = round(1.9 / math.sqrt(1.9**2 + 15), 4)
    texts = ("The soup was good.", "", "The soup was hot.")
    assert ask("sentiment", *texts) == pytest.approx([(1 + compound) / 2, 0.5, 0.5])
    assert ask(Sentiment("negative"), *texts) == pytest.approx([(1 - compound) / 2, 0.5, 0.5])
    assert ask(Sentiment(compound), *texts) == pytest.approx([1, 1 - compound / 2, 1 - compound / 2])


@pytest.mark.parametrize(
    ("text", "compound"),
    [  # as the package's README lists them
        ("VADER is smart, handsome, and funny.", 0.8316),
        ("VADER is smart, handsome, and funny!", 0.8439),
        ("VADER is not smart, handsome, nor funny.", -0.7424),
        ("Today SUX!", -0.5461),
        ("Not bad at all", 0.4310),
    ],
)
def test_sentiment_as_documented(text: str, compound: float) -> None:
    assert ask("sentiment", text) == [pytest.approx((1 + compound) / 2)]


@pytest.mark.parametrize("target", ["happy", 1.5, -2, True, None, math.nan, [1]])
def test_sentiment_refuses(target: Any) -> None:
    with pytest.raises(ValueError, match="target"):
        Sentiment(target)


def test_no_repeat_by_hand() -> None:
    texts = ("a b a b a", "a b c d", "a", "")  # pairs: ab ba ab ba; ab bc cd; none; none
    assert ask(NoRepeat(2), *texts) == [0.5, 1.0, 1.0, 1.0]
    assert ask(NoRepeat(1), *texts) == [0.4, 1.0, 1.0, 1.0]
    assert ask(NoRepeat(2, least=4), *texts) == [0.5, 0.75, 0.0, 0.0]
    assert ask(NoRepeat(1, least=1), *texts) == [0.4, 1.0, 1.0, 0.0]
    assert ask(NoRepeat(3, "characters"), "aaaaa", "abcde") == [pytest.approx(1 / 3), 1.0]
    assert ask(NoRepeat(2, "tokens"), "x", "y", completion_ids=[[5, 6, 5, 6], [5, 5, 5]]) == [
        pytest.approx(2 / 3),
        0.5,
    ]


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 1.0}, {"n": True}, {"unit": "lines"}, {"least": -1}])
def test_no_repeat_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        NoRepeat(**wrong)


def test_bleu_by_hand() -> None:
    # Precisions 3/4, 2/3, 1/2 and 0/1, which exponential smoothing makes 1/2; equal lengths.
    assert ask("bleu", "a b c d", reference=["a b c e"]) == [pytest.approx((3 / 4 * 2 / 3 / 2 / 2) ** 0.25)]
    # Too short for 3-grams: two orders only, both perfect; brevity exp(1 - 4/2).
    assert ask("bleu", "a b", reference=["a b c d"]) == [pytest.approx(math.exp(-1))]
    texts = ("The dog bit the man.", "the dog bit the man.", "")
    references = [["The dog bit the man.", "The dog had bit the man."]] * 3
    perfect, other, empty = ask("bleu", *texts, reference=references)
    assert (perfect, empty) == (1.0, 0.0)
    assert 0.0 < other < 1.0
    assert ask({"name": "bleu", "lowercase": True}, texts[1], reference=references[:1]) == [1.0]


def test_chrf_by_hand() -> None:
    # Characters 2/3, pairs 1/2, triples 0/1; precision and recall agree, so beta does not matter.
    assert ask("chrf", "abc", reference=["abd"]) == [pytest.approx((2 / 3 + 1 / 2) / 3)]
    assert ask("chrf", "abc", "", reference=[["xyz", "abc"], "abc"]) == [1.0, 0.0]
    # Precision 1, recall (1/2 + 0/1) / 2: orders that the text has none of do not count for it.
    by_recall, by_precision = (ask({"name": "chrf", "beta": b}, "a", reference=["ab"])[0] for b in (3, 1))
    assert by_recall < by_precision
    plus = {"name": "chrf", "word_order": 2}
    assert ask(plus, "a b", reference=["a b"]) == [1.0]
    assert ask(plus, "ab", reference=["a b"])[0] < ask("chrf", "ab", reference=["a b"])[0] == 1.0


@pytest.mark.parametrize(
    ("variant", "text", "precision", "recall"),
    [  # against "testing one two"
        ("rouge1", "testing", 1, 1 / 3),
        ("rouge1", "Testing, two three four!", 1 / 2, 2 / 3),
        ("rouge2", "testing one", 1, 1 / 2),
        ("rougeL", "testing two", 1, 2 / 3),
        ("rougeL", "two testing", 1 / 2, 1 / 3),
        ("rougeL", "", 0, 0),
    ],
)
def test_rouge_by_hand(variant: str, text: str, precision: float, recall: float) -> None:
    f = 2 * precision * recall / (precision + recall) if precision else 0.0
    for measure, value in {"precision": precision, "recall": recall, "fmeasure": f}.items():
        spec = {"name": "rouge", "variant": variant, "measure": measure}
        assert ask(spec, text, reference=["testing one two"]) == [pytest.approx(value)]


def test_rouge_stems_and_takes_the_best_reference() -> None:
    assert ask("rouge", "tests", reference=["testing"]) == [0.0]
    assert ask({"name": "rouge", "stem": True}, "tests", reference=["testing"]) == [1.0]
    assert ask("rouge", "first text", reference=[["something else", "first text", "text"]]) == [1.0]


NAMES = ("bleu", "chrf", "rouge")


@pytest.mark.parametrize("name", NAMES)
def test_references_come_from_a_column_and_may_be_absent(name: str) -> None:
    assert ask(name, "a b c", "a b c", reference=["a b c", None]) == [1.0, None]
    assert ask({"name": name, "column": "gold"}, "a b c", gold=[("x", "a b c")]) == [1.0]
    with pytest.raises(ValueError, match=rf"'reference' is needed by reward '{name}'"):
        ask(name, "a", answer=["a"])
    for wrong in ([], [1], 3, {"a": 1}, ["a", None]):
        with pytest.raises(ValueError, match=r"column 'reference' holds .* or None is allowed"):
            ask(name, "a", reference=[wrong])
    with pytest.raises(ValueError, match="column="):
        make_reward({"name": name, "column": ""})


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "rouge", "variant": "rouge3"}, "variant 'rouge3': not one of rouge1, rouge2, rougeL"),
        ({"name": "rouge", "measure": "f1"}, "measure 'f1': not one of fmeasure, precision, recall"),
        ({"name": "chrf", "word_order": -1}, "word_order=-1"),
        ({"name": "chrf", "beta": 0}, "beta=0"),
    ],
)
def test_overlap_refuses(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_reward(spec)


SPECS = [{"name": "sentiment", "target": -0.5}, {"name": "no_repeat", "n": 1, "least": 3}, *NAMES]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=20), min_size=1, max_size=4))
def test_any_text_earns_from_0_to_1_and_each_for_itself(texts: list[str]) -> None:
    for spec in SPECS:
        reward = make_reward(spec)
        references = texts[::-1]
        together = reward(prompts=texts, completions=texts, reference=references)
        assert all(value is None or 0.0 <= value <= 1.0 for value in together)
        assert spec == "rouge" or None not in together
        alone = [reward(["p"], [t], reference=[r])[0] for t, r in zip(texts, references, strict=True)]
        assert together == alone


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_specs_are_json_and_rewards_are_small_to_pickle(spec: Any) -> None:
    reward = make_reward(json.loads(json.dumps(spec)))
    data = pickle.dumps(reward)
    assert len(data) < 300
    assert pickle.loads(data) == reward
    assert Scorer(reward).score(["p"], ["a b"], {"reference": ["a b"]}).total.shape == (1,)


@pytest.mark.long
@pytest.mark.slow
def test_a_deadline_does_not_count_the_loading_of_a_package() -> None:
    scorer = Scorer("rouge", timeout=0.25)  # its package takes longer to import
    np.testing.assert_array_equal(scorer.score(["p"], ["a b"], {"reference": ["a b"]}).total, [1])
    scorer.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package"),
    [("sentiment", "vaderSentiment"), ("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rouge", "rouge_score")],
)
def test_packages_are_imported_when_needed_and_missed_clearly(name: str, package: str) -> None:
    code = f"""
import sys
from textgym.rewards import make_reward
assert not {{"vaderSentiment", "sacrebleu", "rouge_score", "nltk", "torch"}} & set(sys.modules)
sys.modules[{package!r}] = None
try:
    make_reward({name!r})
except ModuleNotFoundError as error:
    print(error, error.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    wanted = f"reward '{name}' needs {package}, which is not installed: pip install \"textgym[rewards]\""
    assert done.stdout == f"{wanted} {package}\n", done.stderr
