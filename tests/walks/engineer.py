"""An engineer's walk: own tokenizer, model and data; train, stop, resume; the same policy in plain transformers."""

import json
import re
from math import isclose
from pathlib import Path

from steps import begin, lines, numbers, run, sees, writes

# No TextGym here: what a tokenizer and a model are made with elsewhere.
MAKE = """
import json
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

transformers.utils.logging.disable_progress_bar()
things = "tea salt rice bread milk soup cake fish corn plums".split()
asks = ("Order {}.", "I would like {}.", "Bring me {}!")
answers = ("Here is the {}.", "Please wait for the {}.", "No {} today.", "One {} please.")
with open("answers.jsonl", "w") as file:
    for thing in things:
        for ask in asks:
            for answer in answers:
                print(json.dumps({"prompt": ask.format(thing), "completion": " " + answer.format(thing)}), file=file)
with open("orders.jsonl", "w") as file:
    for thing in things:
        print(json.dumps({"prompt": asks[0].format(thing), "thing": thing}), file=file)

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
tokenizer.train(["answers.jsonl"], trainer)
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
fast.save_pretrained("models/base")
torch.manual_seed(0)
sizes = dict(n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, pad_token_id=0)
GPT2LMHeadModel(GPT2Config(vocab_size=len(fast), **sizes)).save_pretrained("models/base")
print("tokens:", len(fast))
"""

REWARD = """
def served(prompts, completions, thing, **columns):
    return [0.5 * (name in text) + 0.5 * ("please" in text.lower()) for name, text in zip(thing, completions)]
"""

# No TextGym here either: what another program does with the exported folder.
PLAIN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/shop")
model = AutoModelForCausalLM.from_pretrained("models/shop").eval()
rows = []
for line in open("orders.jsonl"):
    prompt = json.loads(line)["prompt"]
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, -1].double()
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
    row = {"prompt": prompt, "ids": ids[0].tolist(), "log_probs": logits.log_softmax(-1).tolist(), "answer": text}
    rows.append(row)
assert not any(name.startswith("textgym") for name in sys.modules)
json.dump(rows, open("plain.json", "w"))
"""

# The same states by the agent of the run.
COMPARE = """
import json
import numpy as np
from textgym_agents import load_agent, make_env

options = json.load(open("runs/shop/config.json"))["env"]
rows = json.load(open("plain.json"))
env = make_env("textgym/Text-v0", len(rows), **options)
agent = load_agent("runs/shop", env)
observation, _ = env.reset(seed=0, options={"prompt_index": list(range(len(rows)))})
for row, ids, mask in zip(rows, observation["input_ids"], observation["attention_mask"]):
    assert row["ids"] == ids[mask == 1].tolist(), "the ids of a prompt differ"
print(np.abs(agent.log_probs(observation) - [row["log_probs"] for row in rows]).max())
"""

begin("An engineer: own tokenizer, model and data, train, stop, resume, export, plain transformers")

writes("make.py", MAKE)
run("python make.py")
sees("a model folder", all(Path("models/base", name).is_file() for name in ("config.json", "tokenizer.json")))

run("textgym sft --data answers.jsonl --base models/base --epochs 40 --out runs/sft")
result = numbers("runs/sft/result.json")
losses = [result[when]["eval/loss"] for when in ("before", "after")]
sees("the model learns from the rows, held-out loss below 1.5 nats a token", losses[1] < 1.5 < losses[0], losses)

writes("shop.py", REWARD)
base = "tokenizer=runs/sft/model reference=runs/sft/model"
options = f"--env prompts=orders.jsonl {base} reward=shop:served max_new_tokens=12"
budget = "--episodes 2048 --batch 128 --save-every 2 --eval-every 0"
train = f"textgym train Text-v0 {options} --agent rloo {budget} --out runs"


CLOCK = {"seconds", "cpu_seconds", "learning/seconds", "learning/cpu_seconds"}


def learned(name: str) -> list[dict[str, float]]:
    """The metrics of a run's iterations so far, without what a clock says."""
    path = Path("runs", name, "metrics.jsonl")
    rows = lines(str(path)) if path.is_file() else []
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


said = run(f"{train}/shop", code=130, stop=lambda: len(learned("shop")) > 5)
rows = learned("shop")
sees("Ctrl-C comes in the middle", 5 < len(rows) < 16, f"{len(rows)} rows")
(again,) = re.findall(r"textgym train .* --resume", said)
run(again)
run(f"{train}/straight")
sees("stopped and resumed is as if it had not been, row by row", learned("shop") == learned("straight"))
weights = [Path("runs", name, "checkpoint/model/model.safetensors").read_bytes() for name in ("shop", "straight")]
sees("and in every bit of its weights", weights[0] == weights[1], f"{len(weights[0])} bytes")
before, after = (numbers("runs/shop/result.json")[when] for when in ("before", "after"))
sees("J rises, the intervals apart", after["eval/objective_low"] > before["eval/objective_high"])

run("textgym export runs/shop --out models/shop")
writes("plain.py", PLAIN)
run("python plain.py")
writes("compare.py", COMPARE)
difference = float(run("python compare.py"))
sees("plain transformers gives the same log-probabilities, within 1e-4 nats", difference < 1e-4, difference)
answers = {row["prompt"]: row["answer"] for row in numbers("plain.json")}
for index in (0, 7):
    trace = json.loads(run(f"textgym inspect Text-v0 --agent runs/shop --prompt-index {index} --deterministic --json"))
    prompt, text = (trace["traces"][0][name] for name in ("prompt", "completion"))
    sees(f"and the same greedy answer to {prompt!r}", answers[prompt] == text, repr(text))

names = ("runs/shop", f"hf:models/shop {options}")
measured = [json.loads(run(f"textgym eval Text-v0 --per-prompt 4 --json --agent {name}")) for name in names]
earned = [each["objective"]["mean"] for each in measured]
sees("it earns the same as a policy of another program", isclose(*earned, rel_tol=1e-5), earned)
print("\nThe engineer is done.")
