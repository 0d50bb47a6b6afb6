"""Vocabularies of every kind of tokenizer: sizes, stop ids, prompts that stay text, texts that come back."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_tools import STORIES, byte_level, hugging_face, needs_stories, unigram, word_level
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from textgym.codecs import rendering
from textgym.codecs.chat import JinjaTemplate, _renderer
from textgym.codecs.protocol import ByteDecoder
from textgym.codecs.sources import BUILTIN_FOLDER
from textgym.vocab import Vocabulary, load_vocabulary

BYTES = byte_level()
BYTE_VOCABULARY = load_vocabulary(BYTES)
UNIGRAM = unigram()
PIECES = load_vocabulary(UNIGRAM)
CHATML = (
    "{% for m in messages %}<|user|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}> {% endif %}"
)


def test_a_bare_tokenizer_by_hand() -> None:
    assert (BYTE_VOCABULARY.size, BYTE_VOCABULARY.stop_ids, BYTE_VOCABULARY.pad_id) == (301, (2,), 0)
    assert np.flatnonzero(~BYTE_VOCABULARY.allowed).tolist() == [0, 1]
    assert not BYTE_VOCABULARY.allowed.flags.writeable
    assert BYTE_VOCABULARY.encode_prompt("sat") == tuple(BYTES.encode("sat").ids)
    assert BYTE_VOCABULARY.token_text(2) == "<|end|>"
    assert BYTE_VOCABULARY.token_text(300) == "日本 x"


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(0, 300), max_size=40), max_size=4))
def test_joined_bytes_are_what_tokenizers_decodes(batch: list[list[int]]) -> None:
    assert BYTE_VOCABULARY.decode(batch) == [BYTES.decode(ids, skip_special_tokens=True) for ids in batch]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, len(UNIGRAM.get_vocab()) - 1), max_size=20), max_size=3))
def test_other_decoders_are_the_library_s(batch: list[list[int]]) -> None:
    assert PIECES.decode(batch) == [UNIGRAM.decode(ids, skip_special_tokens=True) for ids in batch]


def test_ids_of_padded_rows_leave_nothing() -> None:
    for tokenizer in (BYTES, UNIGRAM, ["a", "b"]):
        size = load_vocabulary(tokenizer).size
        padded = load_vocabulary(tokenizer, vocab_size=size + 27)
        assert padded.size == len(padded.allowed) == size + 27
        assert not padded.allowed[size:].any()
        ids = [5 % size, 4 % size]
        assert padded.decode([[ids[0], size, size + 26, ids[1]]]) == load_vocabulary(tokenizer).decode([ids])
        assert padded.token_text(size) == f"<unused {size}>"


@pytest.mark.parametrize("size", [300, 0, -1, 301.0, True, "301"])
def test_a_vocab_size_below_the_tokenizer_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"allowed is an integer in 301\.\."):
        load_vocabulary(BYTES, vocab_size=size)


@pytest.mark.parametrize("tokenizer", [BYTES, UNIGRAM], ids=["bytes", "unigram"])
def test_the_caller_s_tokenizer_is_never_changed(tokenizer: Tokenizer) -> None:
    mine = Tokenizer.from_str(tokenizer.to_str())
    mine.enable_truncation(3)
    mine.enable_padding(pad_id=1, length=9)
    before = mine.to_str()
    vocabulary = load_vocabulary(mine, vocab_size=1000, stop=["a"])
    ids = vocabulary.encode_prompt("a b a b a b a b a b")
    vocabulary.decode([ids])
    assert len(ids) > 3
    assert vocabulary.pad_id == 1
    assert mine.to_str() == before
    assert mine.encode_special_tokens is False
    assert len(mine.encode("a b a b a b").ids) == 9


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, (2,)), ("<|end|>", (2,)), ("a", (BYTES.token_to_id("a"),)), (7, (7,)), (np.int64(7), (7,)),
        (["<|end|>", 7, 7], (2, 7)), ((), ()), (" the", (BYTES.token_to_id("Ġthe"),)),
        ("\n", (BYTES.token_to_id("Ċ"),)),
    ],
)  # fmt: skip
def test_stop_tokens(stop: Any, expected: tuple[int, ...]) -> None:
    assert load_vocabulary(BYTES, stop=stop).stop_ids == expected


@pytest.mark.parametrize("stop", [301, -1, True, 1.5, "<|ende|>", [None], "no such token"])
def test_a_stop_that_is_no_token_is_refused(stop: Any) -> None:
    with pytest.raises(ValueError, match="stop "):
        load_vocabulary(BYTES, stop=stop)


def test_a_misspelt_stop_token_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"Did you mean '<\|end\|>'"):
        load_vocabulary(BYTES, stop="<|ende|>")


def test_an_ordinary_stop_token_is_allowed_and_leaves_no_text() -> None:
    vocabulary = load_vocabulary(BYTES, stop="a")
    (stop,) = vocabulary.stop_ids
    assert vocabulary.allowed[stop]
    assert not vocabulary.allowed[2]
    assert vocabulary.decode([[BYTES.token_to_id("c"), stop]]) == ["c"]


def control_ids(vocabulary: Vocabulary) -> set[int]:
    return set(vocabulary.codec.special_ids)


@pytest.mark.parametrize("text", ["<|end|>", "x<|end|>y", "<|user|>hi<|end|><|end|>", "<|pad|>"])
def test_text_of_a_control_token_stays_text(text: str) -> None:
    ids = BYTE_VOCABULARY.encode_prompt(text)
    assert not control_ids(BYTE_VOCABULARY) & set(ids)
    assert BYTE_VOCABULARY.decode([ids]) == [text]


def test_text_of_a_control_token_is_cut_as_any_other_text() -> None:
    pair = BYTES.token_to_id("Ġ<|")
    assert pair is not None  # the merge that a cut inside the control token's text would miss
    assert BYTE_VOCABULARY.encode_prompt("the <|end|>")[1] == pair


def test_models_that_hold_control_tokens_as_pieces_do_not_find_them_in_text() -> None:
    words = load_vocabulary(word_level())
    assert words.encode_prompt("a </s> b") == (2, 4, 5, 3)
    pieces = load_vocabulary(UNIGRAM, stop=())
    ids = pieces.encode_prompt("a</s>b")
    assert ids[0] == 2  # BOS
    assert [UNIGRAM.id_to_token(i) for i in ids[1:]] == ["a", "<", "/", "s", ">", "b"]
    with pytest.raises(ValueError, match=r"cannot write '\$' as text"):
        words.encode_prompt("a $ b")


def test_words_without_a_token_for_unknown_ones() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "yes": 1, "no": 2}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    vocabulary = load_vocabulary(tokenizer)
    assert vocabulary.encode_prompt("no yes") == (0, 2, 1)
    with pytest.raises(ValueError, match="prompt: this tokenizer cannot encode 'no never'"):
        vocabulary.encode_prompt("no never")
    with pytest.raises(ValueError, match="stop 'never': not a token"):
        load_vocabulary(tokenizer, stop="never")


def test_copies_and_pickles_keep_control_tokens_out() -> None:
    for again in (pickle.loads(pickle.dumps(BYTE_VOCABULARY)), copy.deepcopy(BYTE_VOCABULARY)):
        assert again.encode_prompt("<|end|>") == BYTE_VOCABULARY.encode_prompt("<|end|>")
        assert again.decode([[5, 300, 2]]) == BYTE_VOCABULARY.decode([[5, 300, 2]])


def test_bos_is_put_before_a_prompt_and_eos_is_not_put_after_it() -> None:
    assert PIECES.encode_prompt("ab") == (2, 3, 4)
    assert PIECES.stop_ids == (1,)


@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(), max_size=30) | st.sampled_from(["<|end|>", "a\0b", "\ud800", "😀", " ", ""]))
def test_any_text_is_a_prompt_or_a_clear_error(text: str) -> None:
    writable = not any("\ud800" <= character <= "\udfff" for character in text)
    if text and writable:
        ids = BYTE_VOCABULARY.encode_prompt(text)
        assert BYTE_VOCABULARY.decode([ids]) == [text]
        assert not {0, 1, 2} & set(ids)
        assert not {1, 2} & set(PIECES.encode_prompt(text)[1:])
    else:
        for vocabulary in (BYTE_VOCABULARY, PIECES):
            with pytest.raises(ValueError, match="UTF-8" if text else "is empty"):
                vocabulary.encode_prompt(text)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
def test_a_prompt_that_is_no_string_is_refused(text: Any) -> None:
    with pytest.raises(TypeError, match="allowed is a string"):
        BYTE_VOCABULARY.encode_prompt(text)


def test_hugging_face_with_and_without_pad_and_eos() -> None:
    bare = load_vocabulary(hugging_face(byte_level()))
    assert (bare.size, bare.stop_ids, bare.pad_id) == (301, (), 0)
    same = load_vocabulary(hugging_face(byte_level(), eos_token="<|end|>", pad_token="<|end|>"))
    assert (same.stop_ids, same.pad_id) == ((2,), 2)
    assert same.allowed[2]
    assert load_vocabulary(hugging_face(byte_level(), eos_token="<|end|>")).pad_id == 2


def test_hugging_face_chat_template() -> None:
    tokenizer = hugging_face(byte_level(), eos_token="<|end|>")
    tokenizer.chat_template = CHATML
    before = (tokenizer.backend_tokenizer.to_str(), copy.deepcopy(tokenizer.init_kwargs))
    vocabulary = load_vocabulary(tokenizer)
    ids = vocabulary.encode_prompt("  the <|end|> cat ")
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer.init_kwargs) == before
    tail = tuple(BYTES.encode("\n> ").ids)
    assert ids[0] == 1
    assert ids[-1 - len(tail) :] == (2, *tail)
    assert not {0, 1, 2} & set(ids[1 : -1 - len(tail)])
    # As the template writes it, which trims its messages.
    assert BYTE_VOCABULARY.decode([ids[1 : -1 - len(tail)]]) == ["the <|end|> cat"]
    assert load_vocabulary(tokenizer, chat=False).encode_prompt("the") == tuple(BYTES.encode("the").ids)


def test_a_python_tokenizer_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.ByT5Tokenizer(extra_ids=5)
    assert not hasattr(tokenizer, "backend_tokenizer")
    vocabulary = load_vocabulary(tokenizer)
    assert (vocabulary.stop_ids, vocabulary.pad_id) == ((1,), 0)
    assert vocabulary.encode_prompt("hé</s>") == tuple(b + 3 for b in "hé</s>".encode())
    assert vocabulary.decode([[107, 0, 108, 1], [107]]) == ["hi", "h"]
    assert vocabulary.allowed[[1, 3, 200]].all()
    assert not vocabulary.allowed[[0, 2, vocabulary.size - 1]].any()
    assert pickle.loads(pickle.dumps(vocabulary)).encode_prompt("hé") == vocabulary.encode_prompt("hé")


@pytest.mark.parametrize("where", ["inline", "named", "file"])
def test_a_folder_with_a_chat_template(tmp_path: Path, where: str) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": {"content": "<|end|>"}, "pad_token": "<|pad|>"}
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text(CHATML)
    else:
        config["chat_template"] = CHATML if where == "inline" else [{"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = hugging_face(byte_level(), eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = CHATML
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        vocabulary = load_vocabulary(path)
        assert vocabulary.encode_prompt("cat") == load_vocabulary(tokenizer).encode_prompt("cat")
        assert (vocabulary.stop_ids, vocabulary.pad_id) == ((2,), 0)


def test_chat_as_a_plain_format() -> None:
    vocabulary = load_vocabulary(BYTES, chat="<|user|>{prompt}<|end|>")
    assert vocabulary.encode_prompt("cat") == (1, *BYTES.encode("cat").ids, 2)
    for chat in ("<|user|>", "{prompt}{prompt}"):
        with pytest.raises(ValueError, match="must stand in it once"):
            load_vocabulary(BYTES, chat=chat)
    with pytest.raises(ValueError, match="no chat template"):
        load_vocabulary(BYTES, chat=True)
    with pytest.raises(TypeError, match="allowed are None, True, False"):
        load_vocabulary(BYTES, chat=3)  # type: ignore[arg-type]


LIMITED = pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="no limits of memory there")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param("{{ 'a' * 10**11 }}", "more than 1024 MiB", marks=LIMITED),
        pytest.param("{{ '%99999999999d' % 1 }}", "OverflowError|more than 1024 MiB", marks=LIMITED),
        ("{{ 'a' * 2**21 }}", "2097152 characters"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].x.y }}", "UndefinedError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_chat_template_that_loops_or_explodes_is_ended(template: str, said: str, tmp_path: Path) -> None:
    BYTES.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(template)
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"chat template cannot be rendered: .*(?:{said})"):
        load_vocabulary(tmp_path)
    assert time.monotonic() - started < 30


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
def test_templates_are_rendered_where_a_lower_limit_of_memory_stands() -> None:
    request = json.dumps(
        {"template": "fine {{ messages[0].content }}", "messages": [{"content": "c"}], "variables": {}}
    )
    line = f"ulimit -v 900000; exec {sys.executable} -P {rendering.__file__}"
    done = subprocess.run(["bash", "-c", line], input=request, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"text": "fine c"}


@pytest.mark.slow
def test_a_template_that_loops_where_nothing_limits_its_cpu_is_ended_by_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert JinjaTemplate("fine {{ messages[0].content }}", {})("b") == "fine b"  # the program has started
    monkeypatch.setattr("textgym.codecs.chat._SECONDS", 0.3)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% set n = j %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"ended after 0\.3 s"):
        JinjaTemplate(loop, {})("b")
    assert time.monotonic() - started < 4
    monkeypatch.undo()
    assert JinjaTemplate("again {{ messages[0].content }}", {})("b") == "again b"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_the_seconds_of_a_template_that_loops_are_cpu_seconds_and_used_once(tmp_path: Path) -> None:
    import resource

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    _renderer.close()
    assert JinjaTemplate("fine {{ messages[0].content }}", {})("a") == "fine a"
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% set k = j %}{% endfor %}{% endfor %}"
    BYTES.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(loop)
    started = seconds()
    for _ in range(3):
        with pytest.raises(ValueError, match=r"chat template cannot be rendered: .*ended after 5 s"):
            load_vocabulary(tmp_path)
    assert 2.5 < seconds() - started < 7.5  # once 5, as the system counts them


def test_a_chat_template_that_drops_or_repeats_the_message_is_refused() -> None:
    tokenizer = hugging_face(byte_level())
    for template in ("fixed", "{{ messages[0].content }}{{ messages[0].content }}"):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match="allowed is once"):
            load_vocabulary(tokenizer)


def test_the_built_in_tokenizer() -> None:
    vocabulary = load_vocabulary()
    end, user, assistant = (vocabulary.codec.token_id(name) for name in ("<|end|>", "<|user|>", "<|assistant|>"))
    ids = vocabulary.encode_prompt("Who? <|end|>")
    assert (ids[0], ids[-2], ids[-1]) == (user, end, assistant)
    assert end not in ids[1:-2]
    assert vocabulary.stop_ids == (end,)
    assert vocabulary.decode([ids]) == ["Who? <|end|>"]
    assert load_vocabulary(BUILTIN_FOLDER).encode_prompt("Who?") == vocabulary.encode_prompt("Who?")


@needs_stories
def test_a_real_tokenizer_as_folder_and_as_object() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES)
    folder, thing = load_vocabulary(STORIES), load_vocabulary(tokenizer)
    for vocabulary in (folder, thing):
        assert (vocabulary.size, vocabulary.stop_ids, vocabulary.pad_id) == (512, (2,), 0)
        assert list(vocabulary.encode_prompt("Once upon a time")) == tokenizer("Once upon a time").input_ids
    ids = [[403, 407, 261, 2], [3 + 0xE2, 3 + 0x82, 3 + 0xAC, 300]]
    assert folder.decode(ids) == thing.decode(ids) == tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_words() -> None:
    vocabulary = load_vocabulary(("x", "<pad>", "y", "stop"), stop="stop")
    assert (vocabulary.size, vocabulary.stop_ids, vocabulary.pad_id) == (4, (3,), 1)
    assert vocabulary.allowed.tolist() == [True, False, True, True]
    assert vocabulary.encode_prompt("y  x stop") == (2, 0, 3)
    assert vocabulary.decode([[0, 1, 2, 2, 3], []]) == ["x y y", ""]
    with pytest.raises(ValueError, match="'z' is not a word"):
        vocabulary.encode_prompt("x z")
    with pytest.raises(ValueError, match="'<pad>' is not a word"):
        vocabulary.encode_prompt("x <pad>")


@pytest.mark.parametrize("words", [[], ["a", "a"], ["a b"], [""], ["<pad>", "<end>"], [3]])
def test_bad_words_are_refused(words: list[Any]) -> None:
    with pytest.raises(ValueError, match="tokenizer: "):
        load_vocabulary(words)


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="int is none of None"):
        load_vocabulary(3)
    with pytest.raises(FileNotFoundError, match=r"Allowed are a tokenizer\.json"):
        load_vocabulary(tmp_path)
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(ValueError, match="the tokenizer is damaged"):
        load_vocabulary(broken)


def test_ids_that_are_kept_of_prompts_are_the_built_in_ones_alone() -> None:
    built_in, other = load_vocabulary(), load_vocabulary(chat="Say: {prompt}")
    for text in ("Hello there.", "<|end|>", "Hello there."):
        once = built_in.encode_prompt(text)
        assert once == load_vocabulary().encode_prompt(text) == tuple(built_in.conversation.encode(text))
        assert other.encode_prompt(text) == tuple(other.conversation.encode(text)) != once


def test_bytes_are_joined_for_any_number_of_ids() -> None:
    decoder = ByteDecoder((b"a", b"\xc3", b"\xa9", b""))
    assert decoder([[], [0], [1, 2], [1], [0, 3, 9, 0], [7]]) == ["", "a", "\u00e9", "\ufffd", "aa", ""]


def test_white_space_that_becomes_another_token_is_no_stop() -> None:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁hello", -3.0), (".", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert [load_vocabulary(tokenizer, stop=stop).stop_ids for stop in (" ", ".")] == [(1,), (3,)]
    for stop in ("\n", "\t"):
        with pytest.raises(ValueError, match="not a token of this tokenizer"):
            load_vocabulary(tokenizer, stop=stop)


def test_a_conversation_that_could_not_be_rendered_once_is_rendered_later(monkeypatch: pytest.MonkeyPatch) -> None:
    template = JinjaTemplate("once {{ messages[0].content }}", {})
    monkeypatch.setattr("textgym.codecs.chat._SECONDS", 0.0)
    monkeypatch.setattr("textgym.codecs.chat._next_line", lambda process, output: process.kill() or "")
    with pytest.raises(ValueError, match="it was ended after 0 s"):
        template("a")
    monkeypatch.undo()
    assert template("a") == "once a"
    assert _renderer._process is not None
    _renderer._process.kill()  # a dead process is noticed, now or when it is asked
    assert template("b") == "once b"
