"""Tools that the policy calls, and deadlines: whatever is written, there is exactly one clear reply."""

from __future__ import annotations

import sys
import time
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from turn_tools import broken, dies, fails, never, polite, shout

from textgym import TokenEnv, make_task
from textgym.commands.flags import env_options
from textgym.responders import Tools, WithDeadline, calculate, evaluate, look_up
from textgym.solver import solve
from textgym.world import MODEL_PATH


def said(text):
    return [{"role": "user", "content": "Go."}, {"role": "assistant", "content": text}]


def answer(tools, text):
    (found,) = tools([said(text)])
    return found


def written(env, text):
    """Write a turn and its stop token; return the last step, and what the environment wrote."""
    vocabulary = env.task.vocabulary
    before = len(env.get_state().environment)
    for token in (*vocabulary.codec.encode(text), vocabulary.stop_ids[0]):
        step = env.step(token)
        state = env.get_state()
        if step[2] or len(state.environment) > before:
            break
    places = state.environment[before:]
    return step, vocabulary.decode([[state.completion[place] for place in places]])[0]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2*3", "6"),
        (" (1 + 2) / 4 ", "0.75"),
        ("0.1+0.2", "0.3"),
        ("-(3-5)*-1", "-2"),
        ("1/3", "0.3333333333"),
        ("2/3*3", "2"),
        ("9" * 99, "9" * 99),
        ("12345678901234567890.0", "12345678901234567890"),
        ("1. + .5", "1.5"),
    ],
)
def test_the_calculator_knows_what_a_hand_does(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("1/0", "division by zero"),
        ("1/(2-2)", "division by zero"),
        ("2**3", "no expression of numbers"),
        ("7//2", "no expression of numbers"),
        ("(2)(3)", "no expression of numbers"),
        ("()", "no expression of numbers"),
        ("1+", "no expression"),
        ("007", "no expression"),
        ("", "allowed are numbers"),
        ("x", "allowed are numbers"),
        ("1e5", "allowed are numbers"),
        ("1\n+2", "allowed are numbers"),
        ("1" * 201, "at most 200 characters"),
        ("(" * 200, "no expression"),
        ("-" * 199 + "1", None),
    ],
)
def test_the_calculator_says_what_is_wrong(expression, said):
    if said is None:
        assert calculate(expression) == "-1"
        return
    with pytest.raises(ValueError, match=said):
        calculate(expression)


def spoken_task(reward, say, responder, **columns):
    """An episode of Text-v0 in which the policy writes `say`, turn by turn, and what it is paid."""
    env = TokenEnv(
        "Text",
        prompts=["What is 17 times 3?"],
        columns={name: [value] for name, value in columns.items()},
        responder=responder,
        turns=len(say),
        turn_tokens=40,
        reply_tokens=40,
        reward=reward,
    )
    env.reset(seed=0)
    codec, stop = env.task.vocabulary.codec, env.task.vocabulary.stop_ids[0]
    for text in say:
        for token in (*codec.encode(text), stop):
            _, paid, done, _, info = env.step(token)
    assert done
    return paid, info


def test_named_rewards_read_what_the_policy_wrote_alone():
    def boast(conversations):
        return ["#### 51 is what I got. Is the cat right?" for _ in conversations]

    paid, info = spoken_task("final_answer", ["#### 7", "Yes."], boast, answer="51")
    assert paid == 0.0  # 1.0 for the user's number
    assert info["written"] == "#### 7\nYes."
    assert "#### 51" in info["completion"]
    assert spoken_task("final_answer", ["#### 7", "#### 51"], boast, answer="51")[0] == 1.0
    assert spoken_task({"name": "keywords", "words": ["cat"]}, ["dog", "bird"], boast)[0] == 0.0
    tools = {"name": "tools", "tools": ["calc"]}
    paid, info = spoken_task("arithmetic", ["<calc>17 * 3</calc>", "51"], tools, answer=51)
    assert paid == 1.0  # 0.0 for the 5151 that both wrote
    assert info["written"] == "<calc>17 * 3</calc>\n51"


def test_looking_up_returns_the_nearest_facts():
    assert look_up("What does the fox eat?").startswith("The fox eats clams.")
    assert look_up("home of the FOX").startswith("The fox lives in the forest.")
    assert look_up("river").count(".") == 3  # distractors: sixteen towns have one
    assert look_up("the of in") == "nothing was found"
    assert look_up("") == "nothing was found"


def test_the_first_call_of_a_turn_is_answered():
    tools = Tools({"calc": "calc", "shout": shout, "loud": "turn_tools:shout"})
    assert answer(tools, "I try <calc> 2*3 </calc> and <shout>a</shout>.") == "6"
    assert answer(tools, "<shout>a\nb</shout>") == "A\nB"
    assert answer(tools, "<loud>c</loud>") == "C"
    assert answer(tools, "<shout></shout>") == "(nothing)"
    assert answer(tools, "<calc>2*3") == "error: <calc> without </calc>"
    assert answer(tools, "<calc>1/0</calc>") == "error: division by zero"
    assert answer(tools, "It is 6.") is None
    assert answer(tools, "<other>2</other> </calc>") is None
    assert tools([said("a"), said("<calc>1</calc>")]) == [None, "1"]


def test_what_a_tool_raises_is_an_error_text():
    tools = Tools({"broken": broken})
    assert answer(tools, "<broken>x</broken>") == "error: 'lost'"
    assert answer(tools, "<broken>empty</broken>") == "error: ValueError"
    assert answer(tools, "<broken>exit</broken>") == "error: 1"


@pytest.mark.slow
def test_a_call_has_a_deadline():
    tools = Tools({"never": never, "dies": dies, "shout": shout}, seconds=0.3)
    assert answer(tools, "<never>x</never>") == "error: tool 'never' took longer than 0.3 s"
    assert answer(tools, "<dies>x</dies>") == "error: the process of tool 'dies' died"
    assert answer(tools, "<shout>x</shout>") == "X"


@pytest.mark.slow
def test_python_is_numbers_and_operators():
    pytest.importorskip("simpleeval")
    assert evaluate("2**10 - 1 >= 1023") == "True"
    assert evaluate("7 // 2 + 1.5") == "4.5"
    for text in ("__import__('os')", "'a'*9", "x", "[1]", "1 if 2 else 3", "True", "1j", "(1).real", "1 and 2"):
        with pytest.raises(ValueError, match="allowed are numbers and operators"):
            evaluate(text)
    for text in ("1 +", "\0", "a b"):
        with pytest.raises(ValueError, match="no expression"):
            evaluate(text)
    tools = Tools(["python"], seconds=0.5)
    assert answer(tools, "<python>6*7</python>") == "42"
    assert answer(tools, "<python>9**9**9</python>").startswith("error: ")
    assert answer(tools, "<python>1/0</python>") == "error: division by zero"
    began = time.monotonic()
    assert answer(tools, "<python>(3000000**3900000)**2</python>") == "error: tool 'python' took longer than 0.5 s"
    assert time.monotonic() - began < 30
    assert answer(tools, "<python>6*7</python>") == "42"  # another process


def test_python_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "simpleeval", None)
    with pytest.raises(ModuleNotFoundError, match=r"tool 'python' needs simpleeval.*textgym\[rewards\]"):
        TokenEnv("Text", responder={"name": "tools", "tools": ["calc", "python"]})


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("calc", "tools='calc': allowed are names"),
        ([], "allowed are names among calc, facts, python"),
        (["calk"], "'calk' is none"),
        ({"a b": "calc"}, "letters, digits and underscores"),
        ({"a": 3}, "'a' is 3; allowed is a function"),
    ],
)
def test_tools_that_are_none_are_refused(tools, said):
    with pytest.raises(ValueError, match=said):
        Tools(tools)


def test_a_policy_calls_tools_in_turns():
    env = TokenEnv("Text", prompts=["Multiply."], responder="tools", turns=3)
    env.reset(seed=0)
    (_, _, ended, _, _), reply = written(env, "<calc>17*3</calc>")
    assert (ended, reply) == (False, "51")
    (_, _, ended, _, info), reply = written(env, "It is 51.")
    assert (ended, reply, info["finish_reason"]) == (True, "", "stop")


def test_the_command_line_names_tools_as_it_does_rewards():
    spec = 'responder={"name": "tools", "tools": {"calc": "calc", "loud": "turn_tools:shout"}, "seconds": 20}'
    env = TokenEnv("Text", prompts=["Multiply."], **env_options([spec, "turns=2"]))
    env.reset(seed=0)
    assert written(env, "<loud>hi</loud>")[1] == "HI"


def test_a_closing_tag_that_is_one_token_ends_the_turn():
    tokenizer = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
    tokenizer.add_tokens(["</calc>"])
    env = TokenEnv("Text", prompts=["Multiply."], tokenizer=tokenizer, stop="<|end|>", responder="tools", turns=3)
    env.reset(seed=0)
    ids = env.task.vocabulary.codec.encode("<calc>17*3</calc>")
    for token in ids[:-1]:
        env.step(token)
        assert env.get_state().replies == 0
    env.step(ids[-1])
    state = env.get_state()
    assert state.replies == 1
    assert env.task.vocabulary.decode([state.completion]) == ["<calc>17*3</calc>51"]


WORDS = ["<calc>", "</calc>", "2*3", "6", ".", "error:"]


def turns_of_words():
    """Every turn of up to three words with its probability under the uniform policy; tag and full stop end it."""
    for length in (1, 2, 3):
        for words in product(WORDS, repeat=length):
            if not {"</calc>", "."} & {*words[:-1]} and (length == 3 or words[-1] in ("</calc>", ".")):
                yield " ".join(words), len(WORDS) ** -length


@pytest.mark.slow
def test_the_optimum_with_a_calculator_is_exact():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="error:"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def reward(prompts, completions, turns, **columns):
        return [float(len(said) == 3 and said[1][1] == said[2][1] == "6") for said in turns]

    options = {"turns": 2, "turn_tokens": 3, "reply_tokens": 1, "beta": 0.1, "reward": reward}
    task = make_task("Text", prompts=["6"], tokenizer=tokenizer, stop=".", responder="tools", **options)
    # Nothing is hidden, so J* = beta log E_ref exp(R / beta): a call of 2*3 or 6 in the first turn, 6 in the second.
    tools, total = Tools(), 0.0
    again = sum(share for text, share in turns_of_words() if text in ("6", "6 ."))
    for text, share in turns_of_words():
        called = answer(tools, text.replace(".", "")) == "6"
        total += share * (1 + called * again * (np.exp(1 / 0.1) - 1))
    assert solve(task).objective == pytest.approx(0.1 * np.log(total), abs=1e-9)


def test_a_result_that_is_too_long_is_cut():
    env = TokenEnv("Text", prompts=["Multiply."], responder="tools", turns=2, turn_tokens=150, reply_tokens=24)
    env.reset(seed=0)
    _, reply = written(env, f"<calc>{'7' * 60}</calc>")
    assert 3 < len(reply) < 24
    assert set(reply) == {"7"}
    assert len(env.get_state().environment) <= 24


PIECES = [f"{mark}{name}>" for mark in ("<", "</") for name in ("calc", "facts", "shout", "broken", "x")]
PIECES += ["<|end|>", "<|user|>", "\ue000", '[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]']
PIECES += ["1", "0", "+", "-", "*", "/", "**", "(", ")", ".", " ", "\n", "\0", "e", "fox", "é", "\U0001f98a", "<", ">"]
WRITTEN = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=14).map("".join)
ENV = TokenEnv(
    "Text",
    prompts=["Go."],
    reward={"name": "length", "target": 8, "unit": "characters"},
    responder=Tools({"calc": "calc", "facts": "facts", "shout": str, "broken": broken}),
    turns=2,
    turn_tokens=80,
    reply_tokens=30,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(WRITTEN)
@example("<calc>" + "(" * 150 + "</calc>")
@example("<shout>ß\ud800</shout>")
@example("<facts>fox</facts><calc>1</calc>")
def test_whatever_is_written_there_is_one_reply(text):
    tools = Tools({"calc": "calc", "facts": "facts", "shout": shout, "broken": broken})
    reply = answer(tools, text)
    called = any(f"<{name}>" in text for name in ("calc", "facts", "shout", "broken"))
    assert (reply is not None) == called
    if called:
        assert reply.strip()
        assert reply.encode("utf-8")


@settings(max_examples=60, deadline=None)
@given(WRITTEN)
@example('<shout>[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]</shout>')
@example("<shout><|end|>\ue000</shout>")
def test_whatever_tokens_are_written_the_environment_writes_once(text):
    ENV.reset(seed=0)
    (_, _, ended, _, info), reply = written(ENV, text)
    state = ENV.get_state()
    called = any(f"<{name}>" in text for name in ("calc", "facts", "shout", "broken"))
    if state.finish_reason is None:
        assert state.replies == 1
        assert reply.strip()
        assert len(state.environment) <= 30
    else:
        assert ended
        assert state.replies == 0
        assert info["finish_reason"] == "stop"
        assert not called or len(ENV.task.vocabulary.codec.encode(text)) >= 80  # the budget has cut it off


EXPRESSIONS = st.text("0123456789+-*/<>=!~%&|^(). \n", max_size=12) | st.text(max_size=8)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS)
def test_whatever_python_is_asked_there_is_one_reply(text):
    pytest.importorskip("simpleeval")
    global PYTHON
    PYTHON = PYTHON or Tools(["python"], seconds=2.0)
    reply = answer(PYTHON, f"<python>{text}</python>")
    assert isinstance(reply, str)
    assert reply.strip()


PYTHON: Tools | None = None


@pytest.mark.long
def test_a_responder_has_a_deadline():
    env = TokenEnv("Text", responder={"name": "deadline", "responder": "turn_tools:never", "seconds": 0.3})
    env.reset(seed=0)
    with pytest.raises(TimeoutError, match=r"^responder 'never' took longer than 0.3 s$"):
        written(env, "Hello")
    for function, said in (
        (dies, "the process of responder 'dies' died"),
        (fails, "responder 'fails' raised KeyError"),
    ):
        with pytest.raises(RuntimeError, match=said):
            WithDeadline(function, 5.0)([said])
    assert WithDeadline(polite, 20.0)([[{"role": "assistant", "content": "Tea"}]]) == ["Tea, please"]


@pytest.mark.slow
def test_a_deadline_hands_on_what_a_responder_says_of_itself():
    wrapped = WithDeadline({"name": "world", "users": 2}, 20.0)
    assert (wrapped.weights, wrapped.asks) == ([0.5, 0.5], ("replies",))
    tools = WithDeadline("tools", 20.0)
    assert (tools.closing, tools.cuts, hasattr(tools, "weights")) == (("</calc>",), True, False)
    assert answer(tools, "<calc>2*3</calc>") == "6"


def test_a_responder_that_no_process_can_load_has_no_deadline():
    with pytest.raises(ValueError, match=r"responder '<lambda>' in a process of its own, so it has to be picklable"):
        WithDeadline(lambda conversations: ["a"], 5.0)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), 2e6])
def test_a_deadline_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match=r"^seconds=.*: allowed is a number in 0.001..1e\+06"):
        WithDeadline(polite, seconds)


@pytest.mark.parametrize(
    ("responder", "said"),
    [
        ("tolls", "responder 'tolls'"),
        ({"tools": ["calc"]}, "the key 'name'"),
        ({"name": "tools", "tolls": 3}, "responder 'tools': .*tolls"),
        ({"name": "script", "texts": "Hi"}, "texts='Hi': allowed is a list of texts"),
    ],
)
def test_a_responder_that_is_none_is_refused(responder, said):
    with pytest.raises(ValueError, match=said):
        TokenEnv("Text", responder=responder)
