"""Rendering: what it shows, and that a text cannot steer the terminal."""

from __future__ import annotations

import sys
import unicodedata

import gymnasium as gym
import numpy as np
import pytest
from core_tools import word_task
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym import render
from textgym.env import TokenEnv
from textgym.vector import TokenVectorEnv


def test_ansi() -> None:
    env = TokenEnv(word_task(), render_mode="ansi")
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(options={"prompt_index": 0})
    assert env.render() == "prompt      a b\ncompletion  "
    env.step(0)
    env.step(4)
    assert env.render() == "prompt      a b\ncompletion  a\nfinished    stop, 2 tokens, reward 1\n"


def test_human_prints_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    env = TokenEnv(word_task(), render_mode="human")
    env.reset(options={"prompt_index": 0})
    env.step(0)
    assert capsys.readouterr().out == "prompt      a b\ncompletion  a"
    env.step(1)
    assert capsys.readouterr().out == " A"
    env.step(4)
    assert capsys.readouterr().out == "\nfinished    stop, 3 tokens, reward 2\n"
    assert env.render() is None


def test_rgb_array_has_a_fixed_canvas() -> None:
    env = TokenEnv(word_task(), render_mode="rgb_array")
    env.reset(options={"prompt_index": 0})
    frames = [env.render()]
    env.step(0)
    frames.append(env.render())
    assert all(frame.shape == (384, 640, 3) and frame.dtype == np.uint8 for frame in frames)
    assert (frames[0] != frames[1]).any()
    assert render.frame_image("word " * 5000 + "\x1b[31m\u202e😀").shape == (384, 640, 3)


def test_without_pillow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    render._font.cache_clear()
    with pytest.raises(DependencyNotInstalled, match=r'pip install "textgym\[report\]"'):
        TokenEnv(word_task(), render_mode="rgb_array")
    TokenEnv(word_task(), render_mode="ansi")


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=30) | st.sampled_from(["\x1b[2J", "\r\n\t\b", "\x9b31m", "\u202eabc", "\u2028"]))
def test_no_control_character_is_printed(text: str) -> None:
    shown = render.escaped(text)
    assert all(unicodedata.category(c)[0] not in "C" and unicodedata.category(c) not in ("Zl", "Zp") for c in shown)
    if text.isprintable() and text.isascii():
        assert shown == text
    assert render.escaped("\x1b[2J\n") == r"\x1b[2J\n"


def test_render_without_a_mode_warns() -> None:
    env = TokenEnv(word_task())
    env.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_vector_frames(capsys: pytest.CaptureFixture[str]) -> None:
    env = TokenVectorEnv(word_task(), 2, render_mode="ansi")
    env.reset(options={"prompt_index": np.array([0, 1])})
    env.step(np.array([0, 4]))
    assert env.render() == (
        "prompt      a b\ncompletion  a",
        "prompt      c\ncompletion  \nfinished    stop, 1 token, reward 0\n",
    )
    assert TokenVectorEnv(word_task(), render_mode="rgb_array").metadata["render_fps"] == 10
    human = TokenVectorEnv(word_task(), 2, render_mode="human")
    human.reset(seed=0)
    human.step(np.array([0, 0]))
    assert human.render() is None
    assert capsys.readouterr().out.count("completion  a") == 4


def test_human_rendering_through_make(capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make("textgym/Text-v0", render_mode="human", prompts=["\x1b[31mred"], max_new_tokens=1)
    env.reset()
    assert "\\x1b[31mred" in capsys.readouterr().out
