"""References in numpy against tables written by hand."""

import numpy as np
import pytest

from textgym.lm.reference import NGramReference, Reference, UniformReference


def observation(*rows, width=5):
    ids = np.full((len(rows), width), 2)  # the padding is a token that occurs
    mask = np.zeros((len(rows), width), dtype=np.int8)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def test_uniform_is_uniform_over_the_allowed_tokens():
    got = np.exp(UniformReference(np.array([True, False, True, True])).log_probs(observation([0], [1, 2])))
    np.testing.assert_allclose(got, [[1 / 3, 0, 1 / 3, 1 / 3]] * 2)


def test_bigram_reads_the_last_real_token():
    table = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    reference = NGramReference(table)
    assert isinstance(reference, Reference)
    np.testing.assert_allclose(np.exp(reference.log_probs(observation([0, 1], [1, 2, 0]))), table[[1, 0]])


def test_trigram_starts_with_the_start_tokens():
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.ones(3), size=(3, 3))
    got = np.exp(NGramReference(table, start=(1, 2)).log_probs(observation([0], [0, 1, 2])))
    np.testing.assert_allclose(got, [table[2, 0], table[1, 2]])


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        NGramReference(np.array([[0.5, 0.6], [1.0, 0.0]]))
    with pytest.raises(ValueError, match=r"start=\(1, 2\): 1 token ids"):
        NGramReference(np.eye(2), start=(1, 2))
    for start in ([-1], [2], [0.5]):
        with pytest.raises(ValueError, match=r"start=.*1 token ids in 0\.\.1 are needed"):
            NGramReference(np.eye(2), start=start)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), allowed is V as often as n"):
        NGramReference(np.full((3, 4), 0.25))
    with pytest.raises(ValueError, match="no token is allowed"):
        UniformReference(np.zeros(3, dtype=bool))
