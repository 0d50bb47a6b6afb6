"""What the folder of a tokenizer says of conversations: its template, its variables, and what ends an answer."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from chat_tools import TEMPLATES, applied, bare, chat_tokenizer
from cli_tools import assert_one_line, run
from core_tools import hugging_face
from packaging.version import Version
from tokenizers import AddedToken, Tokenizer, decoders, models

from textgym import make_task
from textgym.grammar import GrammarMask, regex_grammar
from textgym.rewards import TextGymWarning
from textgym.state import Prompt, TokenState
from textgym.vocab import Vocabulary, load_vocabulary
from textgym.world import MODEL_PATH


def test_a_folder_reads_its_template_as_hugging_face_does(tmp_path: Path) -> None:
    for template in TEMPLATES:
        tokenizer = chat_tokenizer("pieces-first", template)
        tokenizer.save_pretrained(tmp_path)
        vocabulary = load_vocabulary(tmp_path)
        assert list(vocabulary.encode_prompt(" Hello?")) == applied(tokenizer, " Hello?")
        assert vocabulary.conversation is not None
        assert vocabulary.conversation.encode("Hello", "a") == applied(tokenizer, "Hello", "a")


@pytest.mark.slow
def test_a_tokenizer_s_hub_id_is_read_from_the_cache_as_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("transformers")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    stored = tmp_path / "models--some--one"
    folder = stored / "snapshots" / "0123456789abcdef"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(folder.name)
    tokenizer = chat_tokenizer("pieces-first", "chatml")
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.bos_token_id}))
    env: Any = gym.make("textgym/Text-v0", prompts=["Hello"], tokenizer="some/one").unwrapped
    found = env.task.vocabulary
    assert list(found.encode_prompt(" Hello?")) == applied(tokenizer, " Hello?")
    assert found.stop_ids == (tokenizer.bos_token_id,)
    assert found.config == load_vocabulary(folder).config
    words = ["eval", "Text-v0", "--agent", "random", "--per-prompt", "1", "--env", "max_new_tokens=2"]
    words.append('prompts=["Hello"]')
    assert run(capsys, *words, "tokenizer=some/one")[0] == 0
    assert_one_line(
        *run(capsys, *words, "tokenizer=some/none")[::2], "tokenizer='some/none'", "no such model in the cache"
    )


def test_a_template_of_a_file_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    file, saved = tmp_path / "own.jinja", tmp_path / "saved"
    first, *others = TEMPLATES
    file.write_text(TEMPLATES[first])
    for template in others:
        tokenizer = chat_tokenizer("pieces-first", template)
        vocabulary = load_vocabulary(tokenizer, chat=str(file))
        tokenizer.chat_template = TEMPLATES[first]
        assert list(vocabulary.encode_prompt(" Hello?")) == applied(tokenizer, " Hello?")
    saved.mkdir()
    vocabulary.save(saved)
    assert load_vocabulary(saved).encode_prompt(" Hello?") == vocabulary.encode_prompt(" Hello?")
    slow = pytest.importorskip("transformers").ByT5Tokenizer()
    slow.chat_template = TEMPLATES[others[0]]
    (saved / "slow").mkdir()
    load_vocabulary(slow, chat=str(file)).save(saved / "slow")
    assert type(slow).from_pretrained(saved / "slow").chat_template == TEMPLATES[first]
    assert slow.chat_template == TEMPLATES[others[0]]
    with pytest.raises(ValueError, match=r"none\.jinja: there is no such file"):
        load_vocabulary(chat=str(tmp_path / "none.jinja"))
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"own\.jinja: the chat template .*UnicodeDecodeError"):
        load_vocabulary(chat=str(file))


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
    transformers = pytest.importorskip("transformers")
    if (files, name) == ("llama", "byte-level") and Version(transformers.__version__) < Version("5.22"):
        pytest.skip("before 5.22 this class adds a <s> that the folder does not have")
    auto = transformers.AutoTokenizer
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


def test_a_template_beside_a_bare_tokenizer_is_saved_with_it(tmp_path: Path) -> None:
    folder, saved = tmp_path / "bare", tmp_path / "saved"
    folder.mkdir()
    saved.mkdir()
    shutil.copy(MODEL_PATH / "tokenizer.json", folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}")
    vocabulary = load_vocabulary(folder, stop="<|end|>")
    vocabulary.save(saved)
    again = load_vocabulary(saved, stop="<|end|>")
    assert again.encode_prompt("Hello.") == vocabulary.encode_prompt("Hello.")
    assert again.encode_prompt("Hello.") != tuple(vocabulary.codec.encode("Hello."))


@pytest.mark.slow
def test_a_model_needs_no_logits_for_control_tokens_that_nothing_writes(tmp_path: Path) -> None:
    """As Gemma 3's models of text, whose tokenizer ends in a token of images."""
    folder, logits = model_folder(tmp_path, None), bare("byte-level").get_vocab_size()
    tokenizer = chat_tokenizer("byte-level", "gemma")
    plain = load_vocabulary(folder)
    for token, special, size in [("<image>", True, logits), ("image", False, logits + 1)]:
        wide = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        wide.add_tokens([AddedToken(token, special=special)])
        hugging_face(wide, eos_token="</s>").save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(TEMPLATES["gemma"])
        (folder / "config.json").write_text(json.dumps({"vocab_size": logits}))
        vocabulary = load_vocabulary(folder, model=folder)
        assert vocabulary.size == len(vocabulary.allowed) == size
        assert (vocabulary.allowed[:logits] == plain.allowed).all()
        assert load_vocabulary(folder, vocab_size=size).size == size
        assert max(vocabulary.encode_prompt(token)) < size
        state = TokenState(Prompt("a", vocabulary.encode_prompt("a"), None))
        assert GrammarMask(vocabulary, regex_grammar("a+"))([state]).shape == (1, size)
        # It is a token of the task's where it ends an answer.
        assert load_vocabulary(folder, model=folder, stop=token).size == logits + 1
    with pytest.raises(ValueError, match=rf"vocab_size={logits}: allowed is an integer in {logits + 1}\.\."):
        load_vocabulary(folder, vocab_size=logits)


WORDS = ["[UNK]", "</s>", "don", "hello", "##s", "'", "m", "t", "n't", ".", "!"]


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "BPE", "ByteLevel", "forced"])
@pytest.mark.parametrize("cleans", [True, False])
def test_texts_are_cleaned_where_the_tokenizer_cleans_them(kind: str, cleans: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    makers: dict[str, Any] = {"WordPiece": models.WordPiece, "WordLevel": models.WordLevel}
    bare_one = Tokenizer(makers[kind](vocabulary, unk_token="[UNK]") if kind in makers else models.BPE(vocabulary, []))
    if kind == "WordPiece":
        bare_one.decoder = decoders.WordPiece()
    elif kind == "ByteLevel":
        bare_one.decoder = decoders.ByteLevel()
    options: dict[str, Any] = {"clean_up_tokenization_spaces": cleans, "eos_token": "</s>", "unk_token": "[UNK]"}
    if kind == "forced":
        options["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] = True
    tokenizer = hugging_face(bare_one, **options)
    hand = {"WordPiece": ("hellos! don ' t donn't ' m.", "hellos! don't donn't'm.")}
    rows = [[3, 4, 10, 2, 5, 7, 2, 8, 5, 6, 9], [9, 1, 5, 0, 9]]
    tokenizer.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    load_vocabulary(tokenizer).save(tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert texts[0] == hand.get(kind, (texts[0], texts[0]))[cleans]
    for read in (tokenizer, tmp_path / "theirs", tmp_path / "ours", again):
        assert load_vocabulary(read).decode(rows) == texts
    assert [again.decode(row, skip_special_tokens=True) for row in rows] == texts
