"""Conversations: the ids of `apply_chat_template`, whatever the tokenizer, the template and the message."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_tools import CONTROL, TEMPLATES, TOKENIZERS, applied, bare, chat_tokenizer, every_pair
from core_tools import STORIES, byte_level, hugging_face, needs_stories
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from textgym import make_task
from textgym.codecs.protocol import encode_as_text
from textgym.rewards import TextGymWarning
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


def test_an_answer_that_was_cut_off_has_no_end() -> None:
    vocabulary = loaded("byte-level", "chatml")
    assert vocabulary.conversation is not None
    whole = vocabulary.conversation.encode("Hello", "world")
    cut = vocabulary.conversation.encode("Hello", "world", ended=False)
    assert whole[len(cut) :] == vocabulary.codec.encode_control("<|im_end|>\n")
    assert whole[: len(cut)] == cut


def test_a_folder_reads_its_template_as_hugging_face_does(tmp_path: Path) -> None:
    for template in TEMPLATES:
        tokenizer = chat_tokenizer("pieces-first", template)
        tokenizer.save_pretrained(tmp_path)
        vocabulary = load_vocabulary(tmp_path)
        assert list(vocabulary.encode_prompt(" Hello?")) == applied(tokenizer, " Hello?")
        assert vocabulary.conversation is not None
        assert vocabulary.conversation.encode("Hello", "a") == applied(tokenizer, "Hello", "a")


TOKEN_FILES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]] = {
    "map": ({}, {"bos_token": "<s>", "eos_token": {"content": "</s>", "normalized": False}}, None),
    "map-over-config": ({"bos_token": "[INST]"}, {"bos_token": "<s>", "eos_token": "</s>"}, None),
    "decoder-hides-map": (
        {"eos_token": "</s>", "added_tokens_decoder": {}, "tokenizer_class": "TokenizersBackend"},
        {"bos_token": "<s>"},
        None,
    ),
    "null": ({"tokenizer_class": "GemmaTokenizer", "bos_token": None, "eos_token": "</s>"}, None, None),
    "llama": ({"tokenizer_class": "LlamaTokenizerFast"}, None, None),
    "gemma": ({"tokenizer_class": "GemmaTokenizer"}, None, None),
    "qwen2": ({"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<s>"}, None, None),
    "class-of-model": ({}, None, {"model_type": "gemma"}),
    "plain-class-of-model": ({"tokenizer_class": "LlamaTokenizer"}, None, {"model_type": "mistral"}),
    "named-extra": ({"eos_token": "</s>", "extra_special_tokens": {"image_token": "[INST]"}}, None, None),
    "top-level": ({"eos_token": "</s>", "image_token": "[INST]", "add_bos_token": True}, None, None),
}


@pytest.mark.parametrize("name", ["byte-level", "pieces"])
@pytest.mark.parametrize("files", TOKEN_FILES)
def test_a_folder_has_the_template_variables_that_hugging_face_reads(files: str, name: str, tmp_path: Path) -> None:
    auto = pytest.importorskip("transformers").AutoTokenizer
    tokenizer = Tokenizer.from_str(bare(name).to_str())
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<|endoftext|>", "<unk>", "<pad>", "<mask>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config, special, model = TOKEN_FILES[files]
    named = {"tokenizer_class": "PreTrainedTokenizerFast"} if model is None else {}
    written = {"tokenizer_config": named | config, "special_tokens_map": special, "config": model}
    for file, content in written.items():
        if content is not None:
            (tmp_path / f"{file}.json").write_text(json.dumps(content))
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}|{{ image_token }}|{{ messages[0].content }}{{ eos_token }}"
    )
    vocabulary, theirs = load_vocabulary(tmp_path), auto.from_pretrained(tmp_path)
    assert vocabulary.conversation is not None
    asked = [{"role": "user", "content": "Hello"}]
    assert vocabulary.conversation.template("Hello") == theirs.apply_chat_template(asked, tokenize=False)
    if theirs.backend_tokenizer.to_str() == tokenizer.to_str():
        assert list(vocabulary.encode_prompt("Hello")) == applied(theirs, "Hello")
    assert vocabulary.stop_ids == (() if theirs.eos_token is None else (theirs.eos_token_id,))
    saved = tmp_path / "saved"
    saved.mkdir()
    vocabulary.save(saved)
    again = load_vocabulary(saved)
    assert again.conversation is not None
    assert again.conversation.template("Hello") == vocabulary.conversation.template("Hello")
    assert again.stop_ids == vocabulary.stop_ids


def test_a_template_beside_a_tokenizer_without_a_config_is_read(tmp_path: Path) -> None:
    bare("byte-level").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("<s>{{ messages[0].content }}{{ eos_token }}")
    vocabulary = load_vocabulary(tmp_path)
    assert vocabulary.conversation is not None
    assert vocabulary.conversation.template("Hello").startswith("<s>Hello<|im_end|>")


def test_a_folder_that_needs_transformers_says_so_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare("byte-level").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "transformers" else found(name))
    with pytest.warns(TextGymWarning, match=r"names no bos_token .* class GemmaTokenizer .* needs transformers"):
        assert load_vocabulary(tmp_path).stop_ids == ()


def test_a_template_that_cannot_be_read_is_named() -> None:
    tokenizer = hugging_face(bare("byte-level"))
    for template in ("{% if %}", "{{ messages[0].content.no.such }}"):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match=r"chat: the chat template cannot be rendered"):
            load_vocabulary(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(ValueError, match=r"refuses .*no system message"):
        load_vocabulary(tokenizer)


@pytest.mark.parametrize("chat", [None, True])
def test_named_templates_without_a_default_are_refused_where_one_is_wanted(tmp_path: Path, chat: Any) -> None:
    bare("byte-level").save(str(tmp_path / "tokenizer.json"))
    templates = {"rag": "{{ messages[0].content }}", "tool_use": "x"}
    listed = [{"name": name, "template": template} for name, template in templates.items()]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    tokenizer = hugging_face(bare("byte-level"))
    tokenizer.chat_template = templates
    for given_one in (tmp_path, tokenizer):
        with pytest.raises(ValueError, match=rf"chat={chat}: .*named 'rag', 'tool_use', and none is 'default'"):
            load_vocabulary(given_one, chat=chat)
        assert load_vocabulary(given_one, chat=False).conversation is None
        assert load_vocabulary(given_one, chat="<s>{prompt}").before_ids


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


def model_folder(path: Path, eos: Any, template: str = "gemma", **config: Any) -> Path:
    tokenizer = chat_tokenizer("byte-level", template)
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, **config}))
    return path


def names(vocabulary: Vocabulary) -> list[str | None]:
    return [vocabulary.codec.token(i) for i in vocabulary.stop_ids]


@pytest.mark.filterwarnings("ignore:stop")
def test_the_generation_config_says_what_ends_an_answer(tmp_path: Path) -> None:
    token_id = bare("byte-level").token_to_id
    end, turn = token_id("</s>"), token_id("<end_of_turn>")
    transformers = pytest.importorskip("transformers")
    for eos, want in [
        ([end, turn], ["<end_of_turn>", "</s>"]),  # first what the template writes after an answer
        (turn, ["<end_of_turn>"]),
        ([end], ["</s>"]),
        (None, ["</s>"]),  # the tokenizer's
        ([5, turn], ["<end_of_turn>"]),  # 5 is a letter
    ]:
        folder = model_folder(tmp_path, eos)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for vocabulary in (load_vocabulary(folder), load_vocabulary(tokenizer)):
            assert names(vocabulary) == want
            assert vocabulary.allowed[list(vocabulary.stop_ids)].all()
        assert names(load_vocabulary(chat_tokenizer("byte-level", "gemma"), model=folder)) == want
    assert names(load_vocabulary(folder, stop="</s>")) == ["</s>"]
    (tmp_path / "generation_config.json").unlink()
    assert names(load_vocabulary(tmp_path)) == ["</s>"]


def turn_folder(path: Path, eos: Any, **config: Any) -> tuple[Path, int]:
    """A model whose template ends answers with an added token that is not special; and that token's id."""
    tokenizer = Tokenizer.from_str(bare("byte-level").to_str())
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<turn_end>", "<tag>")])
    made = hugging_face(tokenizer, eos_token="</s>")
    made.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<turn_end>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    made.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, **config}))
    turn = tokenizer.token_to_id("<turn_end>")
    assert turn is not None
    return path, turn


def test_a_stop_token_that_the_template_writes_need_not_be_special(tmp_path: Path) -> None:
    turn = turn_folder(tmp_path, None)[1]
    end = bare("byte-level").token_to_id("</s>")
    for eos, want in [(turn, (turn,)), ([end, turn], (turn, end))]:
        folder, _ = turn_folder(tmp_path, eos)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            vocabulary = load_vocabulary(folder)
        assert vocabulary.stop_ids == want
        assert vocabulary.decode([[turn]]) == [""]


@pytest.mark.parametrize(
    ("eos", "dropped"), [(9999, "9999"), (-1, "-1"), ([5, -1], r"5, -1"), ("tag", ""), ("both", "9999")]
)
def test_ids_that_end_no_text_are_named(tmp_path: Path, eos: Any, dropped: str) -> None:
    turn = turn_folder(tmp_path, None)[1]
    written = {"tag": turn + 1, "both": [turn, 9999]}.get(eos, eos) if isinstance(eos, str) else eos
    folder, _ = turn_folder(tmp_path, written)
    with pytest.warns(TextGymWarning, match=rf"eos_token_id=.*of which \[{dropped or turn + 1}\] are no") as said:
        vocabulary = load_vocabulary(folder)
    assert len(said) == 1
    assert names(vocabulary) == (["<turn_end>"] if eos == "both" else ["</s>"])
    folder, _ = turn_folder(tmp_path, written, _from_model_config=True)  # defaults of an architecture
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_vocabulary(folder).stop_ids == vocabulary.stop_ids


@pytest.mark.parametrize("eos", ["</s>", 1.5, [True], [None]])
def test_a_generation_config_without_ids_is_refused(tmp_path: Path, eos: Any) -> None:
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id=.*allowed are null"):
        load_vocabulary(model_folder(tmp_path, eos))


def test_a_task_takes_the_stop_tokens_of_its_reference(tmp_path: Path) -> None:
    turn = bare("byte-level").token_to_id("<end_of_turn>")
    folder = model_folder(tmp_path, [turn])
    tokenizer = chat_tokenizer("byte-level", "gemma")
    task = make_task("Text", prompts=["Hello"], tokenizer=tokenizer, reference=str(folder))
    assert task.vocabulary.stop_ids == (turn,)
    assert make_task("Text", prompts=["Hello"], tokenizer=tokenizer).vocabulary.stop_ids != (turn,)


# Cost


def test_encoding_costs_no_more_with_thousands_of_control_tokens() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken(f"<unused{i}>", special=True) for i in range(6242)])
    text = "the cat sat on the mat. " * 150
    many, few = load_vocabulary(tokenizer), load_vocabulary(byte_level())
    assert len(few.encode_prompt(text)) >= 1000

    assert seconds(many.encode_prompt, text) < 5 * seconds(few.encode_prompt, text) + 0.002
    # Where control tokens come out of text, all of them are looked for.
    control = {f"<unused{i}>": 10_000 + i for i in range(6242)}
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
