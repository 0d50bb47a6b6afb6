"""Compare one process with several that share the work: `python -m textgym_benchmarks.scale`.

The same LM PPO is run by one rank and by several on this machine, with one thread each; the ranks hold all weights
(ddp) or a part of them (fsdp). On the same rollout the gradient must be the same. With `--prompts N`, N prompts are
encoded instead, by a tokenizer of 262,144 tokens, of which 6,242 are control tokens.
"""

from __future__ import annotations

import json
import os
import socket
import string
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from textgym_agents.config import LMPPOConfig, Parallel

from textgym.checks import check_count
from textgym.commands.console import script
from textgym.processes import peak_memory
from textgym_benchmarks.engines.jobs import fresh_python

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import LlamaForCausalLM

_RANK = "import sys; from textgym_benchmarks.scale import run_rank; run_rank(sys.argv[2], sys.argv[3])"
_CPU = "cpu"
_TOKENS, _CONTROL = 262_144, 6_242


@dataclass(frozen=True)
class Scale:
    """Compare one process with several."""

    ranks: int = 2
    """Number of processes that share the work."""
    hidden: int = 256
    """Width of a random Llama with the vocabulary of the built-in world."""
    layers: int = 6
    """Number of layers of that model."""
    batch: int = 32
    """Episodes per iteration, summed over all ranks."""
    iterations: int = 3
    """Number of timed iterations, after one warm-up."""
    prompts: int = 0
    """Time the encoding of this many prompts of 24 words instead; 0: compare processes."""
    as_json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        check_count("prompts", self.prompts, 0)
        for name in ("ranks", "hidden", "layers", "batch", "iterations"):
            check_count(name, getattr(self, name))


class ScaleRow(NamedTuple):
    """One way to run the same iterations.

    `seconds` is wall time per iteration, `memory` the greatest peak RSS of a rank in MiB, `difference` the largest
    difference of an entry of the gradient from that of one rank, over its largest entry.
    """

    how: str
    ranks: int
    tokens_per_second: float
    seconds: float
    memory: float
    difference: float


def measure(settings: Scale) -> list[ScaleRow]:
    """Return a row for one rank, and for several with each way to hold the weights."""
    from safetensors.torch import load_file

    rows: list[ScaleRow] = []
    first: dict[str, Tensor] = {}
    for how, ranks in (("ddp", 1), ("ddp", settings.ranks), ("fsdp", settings.ranks)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "settings.json").write_text(json.dumps(asdict(settings)))
            _run(folder, how, ranks)
            found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
            gradient = load_file(folder / "gradient.safetensors")
        first = first or gradient
        largest = max(float(each.abs().max()) for each in first.values())
        difference = max(float((gradient[name] - each).abs().max()) for name, each in first.items()) / largest
        seconds, memory = found[0]["seconds"], max(each["memory"] for each in found)
        rows.append(
            ScaleRow(how if ranks > 1 else "alone", ranks, found[0]["tokens"] / seconds, seconds, memory, difference)
        )
    return rows


def _run(folder: Path, how: str, ranks: int) -> None:
    """Run the ranks to their end. Raises: RuntimeError with what one printed if it fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [*fresh_python(_RANK), str(folder), how]
    started = [
        subprocess.Popen(
            words,
            env={**shared, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in started:
        text = process.communicate()[0]
        if process.returncode:
            for other in started:
                other.kill()
            raise RuntimeError(f"a rank failed: {text[-2000:]}")


def run_rank(folder: str, how: Parallel) -> None:
    """Be one rank: run the iterations, and write what they took and the gradient of the first step."""
    import torch
    from safetensors.torch import save_file
    from textgym_agents.algorithms.ppo import LMPPO
    from textgym_agents.lm.devices import join
    from textgym_agents.lm.sharding import release, whole
    from textgym_agents.registry import make_env

    torch.set_num_threads(1)
    settings, devices = Scale(**json.loads(Path(folder, "settings.json").read_text())), join()
    env = make_env("textgym/Sentiment-v0", settings.batch // devices.world)
    task = env.unwrapped.task
    config = LMPPOConfig(batch=settings.batch, micro_batch=8, device=_CPU, parallel=how, epochs=1)
    agent = LMPPO(task, config, _model(settings, task.vocabulary.size))
    gradient: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        if not gradient:
            named = agent.policy.named_parameters()
            found = {name: whole(each.grad) for name, each in named if each.grad is not None}
            gradient.update({name: each.clone() for name, each in found.items()})

    agent.optimizer.register_step_pre_hook(keep)
    agent.learn(env, settings.batch)
    started, tokens = time.monotonic(), []
    agent.learn(env, settings.batch * settings.iterations, lambda row: tokens.append(row["tokens"]))
    seconds = (time.monotonic() - started) / settings.iterations
    memory = peak_memory() / 2**20
    row = {"seconds": seconds, "tokens": sum(tokens) / settings.iterations, "memory": memory}
    Path(folder, f"{devices.rank}.json").write_text(json.dumps(row))
    release(agent.policy)
    if devices.leads:
        save_file(gradient, Path(folder, "gradient.safetensors"))


def _model(settings: Scale, size: int) -> LlamaForCausalLM:
    """Return a Llama of random weights, the same in every process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size,
        hidden_size=settings.hidden,
        intermediate_size=3 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=8,
        max_position_embeddings=512,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


class EncodingRow(NamedTuple):
    """One way to encode prompts: seconds of this process's CPU and of the wall, loading the vocabulary left out."""

    how: str
    cpu_seconds: float
    seconds: float


def measure_encoding(prompts: int) -> list[EncodingRow]:
    """Return a row for plain prompts, with a chat template, and with one where prompts hold a control token's text."""
    from transformers import PreTrainedTokenizerFast

    from textgym.vocab import load_vocabulary

    rows: list[EncodingRow] = []
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer())
    turns = "{% for message in messages %}<unused0>{{ message.content | trim }}<unused1>\n{% endfor %}<unused0>"
    for how, template, word in (
        ("plain", None, "word"),
        ("chat template", turns, "word"),
        ("chat template, control token in each prompt", turns, "<unused1>"),
    ):
        tokenizer.chat_template = template
        vocabulary = load_vocabulary(tokenizer)
        letters = np.random.default_rng(0).choice(list(string.ascii_lowercase), (prompts, 23, 5))
        texts = [" ".join([word, *("".join(each) for each in words)]) for words in letters]
        started, cpu = time.monotonic(), time.process_time()
        for text in texts:
            vocabulary.encode_prompt(text)
        rows.append(EncodingRow(how, time.process_time() - cpu, time.monotonic() - started))
    return rows


def _tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer of `_TOKENS` tokens, the last `_CONTROL` of them control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters, alphabet = string.ascii_lowercase, sorted(pre_tokenizers.ByteLevel.alphabet())
    longer = ("".join(each) for length in (2, 3, 4) for each in product(letters, repeat=length))
    words = list(islice(longer, _TOKENS - _CONTROL - len(alphabet)))
    merges = [(word[:-1], word[-1]) for word in words]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, *words])}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<unused{i}>", special=True) for i in range(_CONTROL)])
    return tokenizer


def _print_encoding(settings: Scale) -> None:
    rows = measure_encoding(settings.prompts)
    if settings.as_json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return
    table = Table(f"{settings.prompts:,} prompts", "CPU s", "s")
    for row in rows:
        table.add_row(row.how, f"{row.cpu_seconds:.1f}", f"{row.seconds:.1f}")
    Console().print(table)


def main() -> None:
    """Measure and print."""
    settings = tyro.cli(Scale, description=__doc__)
    if settings.prompts:
        _print_encoding(settings)
        return
    rows = measure(settings)
    if settings.as_json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return
    table = Table("", "ranks", "tokens/s", "s/iteration", "peak RSS per rank, MiB", "gradient's difference")
    for row in rows:
        numbers = f"{row.tokens_per_second:.0f}", f"{row.seconds:.1f}", f"{row.memory:.0f}", f"{row.difference:.1e}"
        table.add_row(row.how, str(row.ranks), *numbers)
    Console().print(table)


if __name__ == "__main__":
    script(main)
