"""A run handed on: the model says what the agent says, the card what `eval` says, the hub gets the folder."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from cli_tools import assert_one_line, run
from textgym_agents.commands.export import card, push
from textgym_agents.config import TrainSettings
from textgym_agents.lm.checkpoint import export_model
from textgym_agents.registry import load_agent, make_agent, make_env
from textgym_agents.training.loop import SilentWatcher, Training
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from textgym import make_task, task_names
from textgym.checks import is_finite
from textgym.commands.console import UsageError
from textgym.files import json_line, read_json, write_json
from textgym.task import task_entry
from textgym.vocab import load_vocabulary

ENV = {"max_new_tokens": 3}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of a few seconds, and its export."""
    from textgym.cli import main

    place = tmp_path_factory.mktemp("export")
    config = {"batch": 8, "minibatches": 1, "temperature": 0.7, "top_k": 40, "seed": 4}
    settings = TrainSettings(
        "textgym/Helpful-v0", "rloo", 16, config, ENV, final_per_prompt=2, optimum_per_prompt=0, track=""
    )
    Training(settings, pictures=False).run(place / "run", SilentWatcher())
    assert main(["export", str(place / "run"), "--out", str(place / "out")]) == 0
    return place


@pytest.mark.slow
def test_the_exported_model_generates_what_the_agent_would(exported):
    from transformers import AutoTokenizer

    env = make_env("textgym/Helpful-v0", 2, **ENV)
    agent = load_agent(exported / "run", env)
    model = AutoModelForCausalLM.from_pretrained(exported / "out")
    assert AutoTokenizer.from_pretrained(exported / "out")("a good answer")["input_ids"]
    observation, _ = env.reset(seed=1)
    for row, mask, want in zip(
        observation["input_ids"], observation["attention_mask"], agent.log_probs(observation), strict=True
    ):
        ids = torch.tensor(row[None, : mask.sum()])
        found = model.generate(ids, max_new_tokens=1, output_scores=True, return_dict_in_generate=True)
        got, possible = found.scores[0].log_softmax(-1)[0].numpy(), want > -1e6
        assert possible.sum() == 40
        assert (np.isfinite(got) == possible).all()
        np.testing.assert_allclose(got[possible], want[possible], atol=1e-5)
    assert model.generation_config.eos_token_id == [*env.unwrapped.task.vocabulary.stop_ids]
    assert model.generation_config.max_new_tokens == 3


@pytest.mark.parametrize("name", [name for name in task_names() if task_entry(name).family == "diagnostics"])
def test_a_folder_of_a_diagnostic_task_reads_its_words(tmp_path, name):
    from transformers import AutoTokenizer

    vocabulary = make_task(name).vocabulary
    vocabulary.save(tmp_path)
    ids = [i for i in np.flatnonzero(vocabulary.allowed).tolist() if i not in vocabulary.stop_ids]
    text = " ".join(vocabulary.token_text(i) for i in ids)
    plain, ours = AutoTokenizer.from_pretrained(tmp_path), load_vocabulary(tmp_path)
    assert plain(text)["input_ids"] == ours.codec.encode(text) == ids
    assert plain.decode(ids) == text


@pytest.mark.slow
def test_the_exported_model_of_a_task_s_words_ends_where_the_task_does(tmp_path, capsys):
    from transformers import AutoTokenizer

    config = {"batch": 4, "minibatches": 1}
    settings = TrainSettings("textgym/Stop-v0", "rloo", 4, config, final_per_prompt=1, track="")
    Training(settings, pictures=False).run(tmp_path / "run", SilentWatcher())
    code, _, errors = run(capsys, "export", str(tmp_path / "run"), "--out", str(tmp_path / "out"))
    assert code == 0, errors
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("word word 2")["input_ids"] == [0, 0, 4]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [1, 2]  # <end> and <halt>
    torch.manual_seed(0)
    ids = model.generate(torch.tensor([[4]] * 32))
    assert {1, 2} <= set(ids[:, 1:].flatten().tolist())


@pytest.mark.slow
def test_the_card_s_numbers_are_those_of_eval(exported, capsys):
    text = (exported / "out/README.md").read_text()
    (command,) = re.findall(r"The same numbers: `(.*)`", text)
    words = [str(exported / "run") if word == "RUN" else word for word in shlex.split(command)[1:]]
    code, out, _ = run(capsys, *words, "--json")
    assert code == 0
    report = json.loads(out)
    for name, label in (("objective", "objective J"), ("kl", "KL to the reference, nats")):
        mean, low, high = (report[name][key] for key in ("mean", "low", "high"))
        assert is_finite(low)
        assert re.search(rf"\| {label} \| [^|]* \| {mean:z.3f} \[{low:z.3f}, {high:z.3f}\] \|", text)
    assert report["reward_terms"]
    for name, mean in report["reward_terms"].items():
        assert re.search(rf"\| term {re.escape(name)} \| -?\d+\.\d{{3}} \| {mean:z.3f} \|", text)
    assert "J\\* is not known: 0 completions a prompt" in text
    samples = (exported / "run/samples.jsonl").read_text().splitlines()
    assert json.dumps(json.loads(samples[-1])["completion"], ensure_ascii=False) in text
    assert '"temperature": 0.7' in text


@pytest.mark.parametrize(
    ("exact", "row"),
    [(False, "| optimum J\\*, estimated | | 0.750 [0.700, 0.800] |"), (True, "| optimum J\\*, exact | | 0.750 |")],
)
def test_the_card_says_how_j_star_is_known(exported, tmp_path, exact, row):
    for name in ("config.json", "result.json"):
        (tmp_path / name).write_bytes((exported / "run" / name).read_bytes())
    result = read_json(tmp_path / "result.json")
    value = {"mean": 0.75, "low": 0.7, "high": 0.8}
    write_json(tmp_path / "result.json", result | {"optimum": {"value": value, "exact": exact, "unknown": ""}})
    report = {"agent": "rloo", "parameters": 3, "temperature": 1.0, "suppressed": 0}
    assert row in card(tmp_path, report)
    assert "and 0 tokens that it never writes. " in card(tmp_path, report)
    assert "and 1 token that it never writes. " in card(tmp_path, report | {"suppressed": 1})
    assert "J\\* is not known" not in card(tmp_path, report)


def test_the_card_has_the_terms_of_the_reward(exported, tmp_path):
    (tmp_path / "config.json").write_bytes((exported / "run/config.json").read_bytes())
    result = read_json(exported / "run/result.json")
    before, after = {"eval/terms/old": 1.0, "eval/terms/a|b": 0.25}, {"eval/terms/a|b": -0.5, "eval/terms/new": 2.0}
    write_json(tmp_path / "result.json", result | {"before": before, "after": after})
    text = card(tmp_path, {"agent": "rloo", "parameters": 3, "temperature": 1.0, "suppressed": 0})
    assert "|--:|--:|\n| term a\\|b | 0.250 | -0.500 |\n| term new | - | 2.000 |\n" in text


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that an upload calls."""

    def do_POST(self):
        url = f"http://127.0.0.1:{self.server.server_port}/me/it"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuses:
            self.answer({"error": "no"}, 401)
        elif self.path.endswith("/repos/create"):
            self.answer({"url": url, "id": "me/it", "name": "me/it"})
        elif "/preupload/" in self.path:
            files = [{"path": each["path"]} for each in json.loads(body)["files"]]
            self.answer({"files": [each | {"uploadMode": "regular", "shouldIgnore": False} for each in files]})
        else:
            self.answer({"commitOid": "0" * 40, "commitUrl": f"{url}/commit/0", "success": True})

    def do_GET(self):
        self.answer({"id": "me/it", "sha": "0" * 40, "siblings": []})

    def answer(self, value, code=200):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch):
    """The server of a hub."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.refuses = [], False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    # What HF_ENDPOINT says is read when the library is imported.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_hub_gets_the_folder_in_a_private_repository(exported, hub, capsys, tmp_path):
    words = ("export", str(exported / "run"), "--out", str(tmp_path / "out"), "--push", "me/it")
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "pushed to" in out
    made = json.loads(next(body for path, _, body in hub.seen if path.endswith("/repos/create")))
    assert made["name"] == "it"
    assert made.get("private") is True or made.get("visibility") == "private"
    commit = next(body for path, _, body in hub.seen if "/commit/main" in path)
    files = [json.loads(line)["value"] for line in commit.splitlines()[1:]]
    held = {each["path"]: base64.b64decode(each["content"]) for each in files}
    assert held == {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()}
    assert {path: token for path, token, _ in hub.seen}["/api/repos/create"] == "Bearer hf_secret"
    assert not any(b"hf_secret" in content for content in held.values())


def test_a_refused_push_leaves_the_folder_and_says_what_to_type(exported, hub, capsys, tmp_path, monkeypatch):
    hub.refuses = True
    words = ("export", str(exported / "run"), "--out", str(tmp_path / "out"), "--push")
    assert_one_line(*run(capsys, *words, "it")[::2], "--push 'it'", "USER/NAME")
    code, _, err = run(capsys, *words, "me/it")
    assert_one_line(code, err, "--push 'me/it'", "hf upload me/it")
    assert "hf_secret" not in err
    assert (tmp_path / "out/model.safetensors").is_file()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"me/it.*Connection refused.* hf upload me/it"):
        push(tmp_path / "out", "me/it", public=False)


def test_a_folder_is_there_with_its_card_or_not_at_all(exported, capsys, tmp_path):
    shutil.copytree(exported / "run", tmp_path / "run")
    with (tmp_path / "run/samples.jsonl").open("a") as file:
        file.write('{"iteration": 9}\n')
    words = ("export", str(tmp_path / "run"), "--out", str(tmp_path / "new/out"))
    assert_one_line(*run(capsys, *words)[::2], "samples.jsonl")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "run/samples.jsonl").unlink()
    assert run(capsys, *words)[0] == 0


def test_a_checkpoint_without_a_run_has_a_card_without_numbers(exported, capsys, tmp_path):
    shutil.copytree(exported / "run/checkpoint", tmp_path / "agent")
    assert run(capsys, "export", str(tmp_path / "agent"), "--out", str(tmp_path / "out"))[0] == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "# rloo\n" in text
    assert "None: the policy is of no finished run." in text


def test_a_kept_checkpoint_is_one_of_its_run(exported, capsys, tmp_path):
    shutil.copytree(exported / "run", tmp_path / "run")
    kept = tmp_path / "run/checkpoints/1"
    shutil.copytree(tmp_path / "run/checkpoint", kept)
    words = ("eval", "Helpful-v0", "--per-prompt", "1", "--optimum-per-prompt", "0", "--json", "--agent")
    of_run, of_checkpoint = (json.loads(run(capsys, *words, str(place))[1]) for place in (tmp_path / "run", kept))
    assert of_checkpoint["reward"] == of_run["reward"]  # in three tokens, as the run says
    assert run(capsys, "export", str(kept), "--out", str(tmp_path / "out"))[0] == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "# rloo on textgym/Helpful-v0\n" in text
    assert "None: iteration 1 was not evaluated." in text
    assert "## Samples" not in text


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_the_card_of_a_kept_checkpoint_has_the_evaluation_of_its_iteration(exported, capsys, tmp_path, finished):
    shutil.copytree(exported / "run", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last, own = rows[-1]["eval/objective"], {"eval/objective": 0.125, "eval/reward": 0.25, "eval/terms/one": 0.5}
    rows[1] = {name: value for name, value in rows[1].items() if not name.startswith("eval/")} | own
    (tmp_path / "run/metrics.jsonl").write_text("".join(map(json_line, rows)))
    for iteration in (1, 2):
        shutil.copytree(tmp_path / "run/checkpoint", tmp_path / f"run/checkpoints/{iteration}")
    if not finished:
        (tmp_path / "run/result.json").unlink()
    samples = (tmp_path / "run/samples.jsonl").read_text()
    assert '{"iteration": 2,' in samples
    (tmp_path / "run/samples.jsonl").write_text(samples.replace('{"iteration": 2,', '{"iteration": 1,', 1))
    report = {"agent": "rloo", "parameters": 3, "temperature": 1.0, "suppressed": 0}
    first, second = (card(tmp_path / f"run/checkpoints/{iteration}", report) for iteration in (1, 2))
    assert "| measure | before | iteration 1 |" in first
    assert re.search(r"\| objective J \| [^|]* \| 0.125 \|", first)
    assert "| term one | - | 0.500 |" in first
    assert re.search(rf"\| objective J \| [^|]* \| {last:z.3f} \[", second)
    assert (len(re.findall('^{"prompt"', first, re.M)), len(re.findall('^{"prompt"', second, re.M))) == (1, 7)
    commands = [re.findall(r"The same numbers: `(.*)`", text)[0] for text in (first, second)]
    assert "--agent RUN/checkpoints/1 --split eval --per-prompt 2 --seed 4" in commands[0]
    words = [word.replace("RUN", str(tmp_path / "run")) for word in shlex.split(commands[1])[1:]]
    code, out, _ = run(capsys, *words, "--json")
    assert (code, json.loads(out)["objective"]["mean"]) == (0, pytest.approx(last))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 2])
def test_a_model_of_texts_and_images_is_exported(tmp_path, rank):
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**size, "vocab_size": 96, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    images = {**size, "image_size": 28, "patch_size": 14}
    ids = {"boi_token_index": 93, "eoi_token_index": 94, "image_token_index": 95, "image_token_id": 95}
    config = Gemma3Config(text_config=text, vision_config=images, mm_tokens_per_image=1, **ids)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(93))]
    options = {"tokenizer": words, "stop": "</s>", "max_new_tokens": 3, "reward": "length"}
    env = make_env("textgym/Text-v0", 2, prompts=["w1 w2"], reference=str(tmp_path / "model"), vocab_size=96, **options)
    agent = make_agent("rloo", env, batch=4, minibatches=1, lora_rank=rank, device="cpu")
    agent.save(tmp_path / "agent")
    export_model(tmp_path / "agent", tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(plain) is Gemma3ForConditionalGeneration
    observation, _ = env.reset(seed=0)
    row = torch.tensor(observation["input_ids"][:1, :2])
    with torch.no_grad():
        got = plain(input_ids=row).logits[0, -1].numpy()
    want = agent.log_probs(observation)[0]
    possible = want > -1e6
    np.testing.assert_allclose(np.ptp(got[possible] - want[possible]), 0, atol=1e-4)
