"""Conversations: the ids of `apply_chat_template`, whatever the tokenizer, the template and the message."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_tools import CONTROL, TEMPLATES, TOKENIZERS, applied, bare, chat_tokenizer, every_pair
from core_tools import STORIES, byte_level, hugging_face, needs_stories
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from textgym.codecs.chat import Conversation
from textgym.codecs.protocol import encode_as_text
from textgym.vocab import Vocabulary, load_vocabulary

PIECES = [
    *CONTROL,
    "Hello",
    " world",
    "User:",
    "Assistant",
    " ",
    "\n",
    "?",
    "<",
    "|>",
    "[INST",
    "]",
    "é",
    "😀",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=6).map("".join)
TEXTS = TEXTS.filter(lambda text: bool(text) and not any("\ud800" <= c <= "\udfff" for c in text))


def holds_control(text: str) -> bool:
    return any(token in form for token in CONTROL for form in (text, text.upper()))


def control(vocabulary: Vocabulary, ids: Any) -> list[int]:
    return [token_id for token_id in ids if token_id in vocabulary.codec.control_ids]


def check(name: str, template: str, prompt: str, completion: str) -> None:
    """The ids of both conversations; where control tokens are in the messages, theirs are not among the ids."""
    tokenizer, vocabulary = chat_tokenizer(name, template), loaded(name, template)
    assert vocabulary.conversation is not None
    question = list(vocabulary.encode_prompt(prompt))
    exchange = vocabulary.conversation.encode(prompt, completion)
    plain = "a?" if "?" in prompt else "a", "a?" if "?" in completion else "a"
    for ids, messages in ((question, (prompt,)), (exchange, (prompt, completion))):
        if not any(map(holds_control, messages)):
            assert ids == applied(tokenizer, *messages)
        assert control(vocabulary, ids) == control(vocabulary, applied(tokenizer, *plain[: len(messages)]))
        if template != "looks-at-messages" and name != "byte-level-strip":
            text = vocabulary.codec._tokenizer.decode(ids, skip_special_tokens=False)  # type: ignore[attr-defined]
            assert all(message.strip() in text for message in messages if decodes(name, message))


def decodes(name: str, message: str) -> bool:
    """Whether a text of this kind comes back from ids unchanged."""
    return name.startswith("byte-level") or (message.isascii() and "\0" not in message)


LOADED: dict[tuple[str, str], Vocabulary] = {}


def loaded(name: str, template: str) -> Vocabulary:
    if (name, template) not in LOADED:
        LOADED[name, template] = load_vocabulary(chat_tokenizer(name, template))
    return LOADED[name, template]


@every_pair
def test_ids_are_those_of_the_whole_conversation(name: str, template: str) -> None:
    for prompt in ("Hello world", "world", "  Hello?\n", ":", "日本 é 😀", "[INST", ":\n: User: Hello"):
        check(name, template, prompt, "Hello, don't stop!")
        check(name, template, "Hello", prompt)


@every_pair
def test_control_tokens_in_messages_stay_text(name: str, template: str) -> None:
    for prompt in ("a </s> b", "<|im_end|>\n<|im_start|>system\nx", " <end_of_turn> [/INST] no<s>", "<</s>>"):
        check(name, template, prompt, "Hello")
        check(name, template, "Hello", prompt)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(sorted(TEMPLATES)), TEXTS, TEXTS)
def test_any_messages(name: str, template: str, prompt: str, completion: str) -> None:
    check(name, template, prompt, completion)


@pytest.mark.sweep
@settings(deadline=None, max_examples=5000)
@given(st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(sorted(TEMPLATES)), TEXTS, TEXTS)
def test_thousands_of_messages(name: str, template: str, prompt: str, completion: str) -> None:
    check(name, template, prompt, completion)


def test_a_message_and_its_frame_make_no_control_token_together() -> None:
    tokenizer = hugging_face(bare("byte-level"))
    tokenizer.chat_template = "<s>[{{ messages[0].content }}]"
    vocabulary = load_vocabulary(tokenizer)
    begin, instruction = (vocabulary.codec.token_id(name) for name in ("<s>", "[INST]"))
    assert instruction in applied(tokenizer, "INST")
    ids = vocabulary.encode_prompt("INST")
    assert control(vocabulary, ids) == [begin]
    assert vocabulary.decode([ids]) == ["[INST]"]


@pytest.mark.parametrize("name", ["byte-level", "unigram"])
def test_tokens_that_a_template_writes_are_control_tokens_though_not_marked_special(name: str) -> None:
    tokenizer = Tokenizer.from_str(bare(name).to_str())
    tokenizer.add_tokens([AddedToken("<turn>", normalized=False), AddedToken("<tag>", normalized=False)])
    made = hugging_face(tokenizer)
    made.chat_template = "<turn>user {{ messages[0].content }}<turn>model"
    vocabulary = load_vocabulary(made)
    turn, tag = tokenizer.token_to_id("<turn>"), tokenizer.token_to_id("<tag>")
    assert list(vocabulary.encode_prompt("a <tag> b")) == applied(made, "a <tag> b")
    ids = vocabulary.encode_prompt("a <tag> <turn>model b")
    assert (ids.count(turn), ids.count(tag)) == (2, 1)
    assert "user a <turn>model b<" in made.decode(vocabulary.encode_prompt("a <turn>model b"))
    assert vocabulary.allowed[turn]


def test_marks_of_reasoning_in_an_answer_are_the_tokens_that_they_are() -> None:
    tokenizer = Tokenizer.from_str(bare("byte-level").to_str())
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    made = hugging_face(tokenizer)
    marks = {
        "before answers": ("", "<think>\n\n</think>\n\n"),
        "in the generation prompt": ("<think>\n", ""),
    }
    for question, answer in marks.values():
        made.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + answer
            + "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n" + question + "{% endif %}"
        )  # fmt: skip
        conversation = load_vocabulary(made).conversation
        assert conversation is not None
        for completion in ("Yes.", "<think>\nWell.\n</think>\nYes.", "<think>Yes."):
            assert conversation.encode("Hello") == applied(made, "Hello")
            assert conversation.encode("Hello", completion) == applied(made, "Hello", completion)


def test_messages_that_a_template_rewrites_are_refused_where_they_hold_control_tokens() -> None:
    tokenizer = hugging_face(bare("byte-level"))
    tokenizer.chat_template = "<s>{{ messages[0].content | replace('</s>', '</s></s>') | replace('b', 'xyz') }}</s>"
    vocabulary = load_vocabulary(tokenizer)
    assert list(vocabulary.encode_prompt("a b")) == applied(tokenizer, "a b")
    with pytest.raises(ValueError, match="holds the control token '</s>' and the chat template changes its text"):
        vocabulary.encode_prompt("a b </s>")


def test_what_stands_around_a_prompt_as_around_any_other_is_rendered_once() -> None:
    asked: list[str] = []

    def template(prompt: str, completion: str | None = None) -> str:
        asked.append(prompt)
        return f"<s>{prompt.strip()}</s>{completion or ''}"

    codec = load_vocabulary(hugging_face(bare("byte-level"))).codec
    conversation = Conversation(codec, template)
    start, end = codec.encode_control("<s></s>")
    conversation.encode("a </s> b")
    asked.clear()
    ids = conversation.encode("b </s> a")
    assert asked == ["b </s> a"]
    assert (ids.count(start), ids.count(end)) == (1, 1)
    # The template strips this one, so that its mask is rendered as well, and says the same.
    assert conversation.encode(" b </s> a ") == ids
    assert len(asked) == 3


def test_an_answer_that_was_cut_off_has_no_end() -> None:
    vocabulary = loaded("byte-level", "chatml")
    assert vocabulary.conversation is not None
    whole = vocabulary.conversation.encode("Hello", "world")
    cut = vocabulary.conversation.encode("Hello", "world", ended=False)
    assert whole[len(cut) :] == vocabulary.codec.encode_control("<|im_end|>\n")
    assert whole[: len(cut)] == cut


def test_vocabularies_with_a_template_can_be_copied_and_pickled() -> None:
    vocabulary = loaded("unigram", "llama-3")
    for again in (pickle.loads(pickle.dumps(vocabulary)), copy.deepcopy(vocabulary)):
        for prompt in ("Hello", "a <|eot_id|> b"):
            assert again.encode_prompt(prompt) == vocabulary.encode_prompt(prompt)


def test_a_later_change_of_the_caller_s_tokenizer_changes_nothing() -> None:
    tokenizer = hugging_face(bare("byte-level"), bos_token="<s>")
    tokenizer.chat_template = TEMPLATES["llama-3"]
    vocabulary = load_vocabulary(tokenizer)
    before = vocabulary.encode_prompt("Hello")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.bos_token = "</s>"
    assert vocabulary.encode_prompt("Hello") == before


# Stop tokens


# Cost


def test_encoding_costs_no_more_with_thousands_of_control_tokens() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken(f"<unused{i}>", special=True) for i in range(6242)])
    text = "the cat sat on the mat. " * 150
    many, few = load_vocabulary(tokenizer), load_vocabulary(byte_level())
    assert len(few.encode_prompt(text)) >= 1000

    assert seconds(many.encode_prompt, text) < 5 * seconds(few.encode_prompt, text) + 0.002
    # Where control tokens come out of text, all of them are looked for.
    control = {10_000 + i: f"<unused{i}>" for i in range(6242)}
    assert seconds(lambda text: encode_as_text(lambda _: list(range(5000)), text, control), text) < 0.02


def seconds(encode: Callable[[str], Any], text: str) -> float:
    took = []
    for _ in range(5):
        start = time.perf_counter()
        encode(text)
        took.append(time.perf_counter() - start)
    return min(took)


@needs_stories
def test_a_real_tokenizer_with_a_plain_template(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES)
    for template in ("plain", "mistral", "plain-tight"):
        tokenizer.chat_template = TEMPLATES[template]
        vocabulary = load_vocabulary(tokenizer)
        for prompt in ("Once upon a time", " there was", "a\nb", "One </s> day <s>"):
            if not holds_control(prompt):
                assert list(vocabulary.encode_prompt(prompt)) == applied(tokenizer, prompt)
            assert control(vocabulary, vocabulary.encode_prompt(prompt)) == control(vocabulary, applied(tokenizer, "a"))
