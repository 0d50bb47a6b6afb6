"""Flags that take several words may be given several times."""

import pytest

from textgym.commands._flags import merged


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ID", "--env", "a=1"], ["ID", "--env", "a=1"]),
        (["ID", "--env", "a=1", "b=2", "--n", "3"], ["ID", "--n", "3", "--env", "a=1", "b=2"]),
        (["ID", "--env", "a=1", "--n", "3", "--env", "b=2"], ["ID", "--n", "3", "--env", "a=1", "b=2"]),
        (["ID", "--env=a=1", "--env", "b=2"], ["ID", "--env", "a=1", "b=2"]),
        (["ID", "--n", "3"], ["ID", "--n", "3"]),
    ],
)
def test_a_repeated_flag_keeps_all_its_words(words, expected):
    assert merged(words, "--env") == expected
