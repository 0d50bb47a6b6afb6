"""Data of one's own in a run: over-long prompts, a model's own tokenizer, one TOML file, any format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from chat_tools import bare, chat_tokenizer
from test_conversation_folders import model_folder
from test_rows import ASKED, FORMATS, write
from textgym_agents.commands import train
from textgym_agents.rlhf.runs import digest

from textgym.checks import TextGymWarning
from textgym.commands.console import UsageError
from textgym.commands.flags import with_config
from textgym.prompts import fit_prompts, own_splits, prompt_set
from textgym.rewards import make_reward
from textgym.task import make_task
from textgym.vocab import load_vocabulary

ROWS = [{"prompt": "Who is it?", "answer": 1}, {"prompt": "Tell me about the sea.", "answer": 2}]


# Over-long prompts, counted in characters


def test_long_prompts_are_dropped_with_their_columns() -> None:
    both = prompt_set(["abcdef", "ab", "abc"], {"n": [6, 2, 3]}, [2, 1, 3])
    with pytest.warns(TextGymWarning, match="1 of 3 train prompts have more than max_prompt_tokens=3") as warned:
        fitted = fit_prompts({"train": both, "eval": both}, len, 3, "drop")["train"]
    assert len(warned) == 1
    assert fitted.texts == ("ab", "abc")
    assert fitted.columns == {"n": (2, 3)}
    assert fitted.weights.tolist() == [0.25, 0.75]


def test_long_prompts_are_cut_on_the_left() -> None:
    asked = json.dumps(ASKED, ensure_ascii=False)
    short = json.dumps([ASKED[0], {"role": "user", "content": "on."}])
    splits = {"train": prompt_set(["abcdef", "ab"]), "eval": prompt_set([asked])}
    with pytest.warns(TextGymWarning, match="are cut"):
        assert fit_prompts({"train": splits["train"]}, len, 3, "cut")["train"].texts == ("def", "ab")
    with pytest.warns(TextGymWarning, match="are cut"):
        assert fit_prompts({"eval": splits["eval"]}, len, len(short), "cut")["eval"].texts == (short,)


def templated(text: str) -> int:
    """Return characters with a template of 9 around the prompt, which must not be empty."""
    if not text:
        raise ValueError("'' is empty")
    return len(text) + 9


@pytest.mark.parametrize("most", [5, 9])
def test_a_limit_below_the_template_is_named_with_what_is_enough(most: int) -> None:
    splits = {"train": prompt_set(["abcdef", "x", "abc"])}
    said = f"max_prompt_tokens={most}: a train prompt cut to its last character has 10 tokens, .* allowed is 10 or more"
    with pytest.raises(ValueError, match=said):
        fit_prompts(splits, templated, most, "cut")
    with pytest.warns(TextGymWarning, match="2 of 3 train prompts"):
        assert fit_prompts(splits, templated, 10, "cut")["train"].texts == ("f", "x", "c")


def test_a_limit_that_no_prompt_keeps_is_named_with_the_shortest() -> None:
    splits = {"train": prompt_set(["abcdef", "xy", "abc"])}
    said = "max_prompt_tokens=10: no train prompt is left, the shortest of 3 has 11 tokens; allowed is 11 or more"
    with pytest.raises(ValueError, match=said):
        fit_prompts(splits, templated, 10, "drop")
    with pytest.warns(TextGymWarning, match="2 of 3 train prompts"):
        assert fit_prompts(splits, templated, 11, "drop")["train"].texts == ("xy",)
    unused = {"train": prompt_set(["a", "b", "abcdef", "abcd"], None, [0, 0, 1, 1])}
    with pytest.raises(
        ValueError, match=r"no train prompt is left that is ever drawn, the shortest of 2 has 13 tokens"
    ):
        fit_prompts(unused, templated, 11, "drop")


def test_long_prompts_are_refused_where_nobody_says_otherwise() -> None:
    words = {"tokenizer": ["a", "b", "."], "stop": "."}
    with pytest.raises(ValueError, match="train prompt 0: 'a b a' has 3 tokens"):
        make_task("Text", prompts=["a b a"], max_prompt_tokens=2, **words).encoded("train")
    with pytest.warns(TextGymWarning, match="are cut"):
        task = make_task("Text", prompts=["a b a"], max_prompt_tokens=2, overlong="cut", **words)
    assert task.encoded("train")[0].ids == (1, 0)
    with pytest.raises(ValueError, match=r"overlong 'cutt': not one of cut, drop, refuse. Did you mean 'cut'"):
        make_task("Text", prompts=["a b a"], max_prompt_tokens=2, overlong="cutt", **words)


# Messages


@pytest.mark.parametrize("extra", ["", " <|im_end|> and <|im_start|>system"])
def test_several_messages_are_encoded_as_the_template_writes_them(extra: str) -> None:
    tokenizer = chat_tokenizer("byte-level", "chatml")
    turns = [*ASKED[:-1], ASKED[-1] | {"content": ASKED[-1]["content"] + extra}]
    vocabulary = load_vocabulary(tokenizer)
    ids = vocabulary.encode_prompt(json.dumps(turns, ensure_ascii=False))
    if not extra:
        assert list(ids) == list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
    control = [i for i in ids if i in vocabulary.codec.control_ids]
    plain = vocabulary.encode_prompt(json.dumps(ASKED, ensure_ascii=False))
    assert control == [i for i in plain if i in vocabulary.codec.control_ids]


def test_several_messages_need_a_chat_template() -> None:
    with pytest.raises(ValueError, match="has several messages, which needs a tokenizer with a chat template"):
        make_task("Text", prompts=[json.dumps(ASKED, ensure_ascii=False)])


def test_messages_stand_for_a_text_in_a_list_too() -> None:
    found = prompt_set(["Hi", ASKED, [ASKED[1]]], {"n": [1, 2, 3]})
    assert found.texts == ("Hi", json.dumps(ASKED, ensure_ascii=False), "Hi")
    assert own_splits([ASKED], None, None)["train"].texts == found.texts[1:2]
    with pytest.raises(ValueError, match="eval_prompts: the last message of a prompt must be the user's"):
        own_splits(["a"], [[{"role": "assistant", "content": "a"}]], None)
    with pytest.raises(TypeError, match="is not a list of strings, or of lists of messages"):
        prompt_set([ASKED[1]])  # type: ignore[list-item]


# A model's own tokenizer


def test_tokenizer_and_vocabulary_come_from_the_reference(tmp_path: Path) -> None:
    turn = bare("byte-level").token_to_id("<end_of_turn>")
    folder = model_folder(tmp_path / "m", [turn])
    (folder / "config.json").write_text('{"vocab_size": 5000}')
    task = make_task("Text", prompts=["Hello"], reference=str(folder))
    named = load_vocabulary(folder)
    assert task.vocabulary.stop_ids == (turn,)
    assert task.vocabulary.size == 5000
    assert task.encoded("train")[0].ids == named.encode_prompt("Hello")
    assert make_task("Text", prompts=["Hello"], reference=str(folder), vocab_size=6000).vocabulary.size == 6000
    flags = train.TrainFlags("Text-v0", env=("max_new_tokens=4",))
    assert train._environment(flags, {"model": str(folder)}) == {"max_new_tokens": 4, "reference": str(folder)}
    flags = train.TrainFlags("Text-v0", env=("reference=uniform",))
    assert train._environment(flags, {"model": str(folder)}) == {"reference": "uniform"}


# One TOML file


def test_a_file_stands_for_its_flags_and_flags_beside_it_win(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'id = "Copy-v0"\nlearning_rate = 1e-3\nwhiten = false\nlive = true\nquantiles = [1, 2]\n'
        '[env]\nmax_new_tokens = 5\nprompts = ["1", "2"]\nreward = "3"\n'
    )
    own = ["Copy-v0", "--learning-rate=0.001", "--no-whiten", "--live", "--quantiles", "1", "2"]
    env = ["--env", "max_new_tokens=5", 'prompts=["1", "2"]', 'reward="3"']
    assert with_config(["--config", str(path)]) == [*own, *env]
    words = ["Text-v0", "--whiten", f"--config={path}", "--learning_rate", "2", "--env", "max_new_tokens=6"]
    assert with_config(words) == [
        *("Text-v0", "--live", "--quantiles", "1", "2", *env),
        *("--whiten", "--learning_rate", "2", "--env", "max_new_tokens=6"),
    ]
    assert train.named_agent(["--config", str(path)]) == "lm-ppo"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = ", "no settings can be read there"),
        ("[agent]\nname = 1", "agent is a dict; allowed are flags"),
        ("env = 3", "env must be a table"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "run.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=f"--config {path}: .*{said}"):
        with_config(["--config", str(path)])


# The same run

QUICK = {"agent": "reinforce", "episodes": 8, "batch": 8, "seed": 3, "eval_points": 0, "optimum_per_prompt": 0}


def run(form: str, out: str, *, flags: bool = False) -> tuple[list[bytes], str]:
    """Train on rows of a format, by flags or by a file, and return weights and completions."""
    if not Path(f"rows.{form}").exists():
        write(Path(), form, ROWS)
    env = {"prompts": f"rows.{form}", "max_new_tokens": 3}
    if flags:
        words = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
        train.main(["Text-v0", *words, "--env", *(f"{name}={value}" for name, value in env.items()), "--out", out])
    else:
        lines = [f"{name} = {json.dumps(value)}" for name, value in ({"id": "Text-v0"} | QUICK).items()]
        lines += ["[env]", *(f"{name} = {json.dumps(value)}" for name, value in env.items())]
        Path("run.toml").write_text("\n".join(lines))
        train.main(["--config", "run.toml", "--out", out])
    weights = [file.read_bytes() for file in sorted(Path(out, "checkpoint").rglob("*.safetensors"))]
    assert weights
    return weights, Path(out, "samples.jsonl").read_text()


@pytest.mark.slow
def test_a_file_gives_the_run_of_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("csv", "file") == run("csv", "flags", flags=True)
    both = [json.loads(Path(name, "config.json").read_text()) for name in ("file", "flags")]
    assert both[0]["config"]["batch"] == 8
    assert [{key: each[key] for key in ("id", "agent", "episodes", "config", "env")} for each in both[:1]] == [
        {key: each[key] for key in ("id", "agent", "episodes", "config", "env")} for each in both[1:]
    ]


@pytest.mark.sweep
def test_every_format_gives_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    first, *others = [run(form, f"run-{form}") for form in FORMATS]
    assert all(each == first for each in others)


def test_the_digest_of_a_source_is_of_its_file_or_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", ROWS)
    assert digest(f"{path}#prompt=answer") == hashlib.sha256(path.read_bytes()).hexdigest()
    folder = tmp_path / "folder"
    folder.mkdir()
    pytest.importorskip("datasets")
    first = digest(write(folder, "datasets", ROWS))
    assert first == digest(folder / "rows.datasets") != digest(f"{folder / 'rows.datasets'}#rows=1")


@pytest.mark.parametrize("name", ["eval", "tune"])
def test_data_of_a_split_without_prompts_of_its_own_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}_columns=.*allowed is None where there are no {name}_prompts"):
        own_splits(["a"], None, None, {"answer": ["x"]}, **{f"{name}_columns": {"answer": ["y"]}})


def test_a_column_may_be_an_array() -> None:
    task = make_task("Text", prompts=["5", "5 5"], columns={"answer": np.array([5, 6])}, reward="arithmetic")
    assert task.prompt_set("train").columns == {"answer": (5, 6)}
    single = prompt_set(["a", "b"], {"answer": np.array([0.1, 2.5], dtype=np.float32)}).columns["answer"]
    assert make_reward("arithmetic")(["p"] * 2, ["0.1", "2.5"], answer=list(single)) == [1.0, 1.0]
    days = np.array(["2020-01-01"], dtype="datetime64[ns]")
    assert prompt_set(["a"], {"day": days}).columns["day"] == tuple(days)
    prompts = task.encoded("train")
    assert task.judge("train", prompts, [[5]] * 2, texts=["5", "6"]).total.tolist() == [1.0, 1.0]
