"""A sampler over HTTP: a server with vLLM's OpenAI-compatible API, which gets new weights as LoRA adapters.

The requests are those of vLLM 0.10.2 and later (`vllm/entrypoints/openai/completion/protocol.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from textgym.lm.backbone import is_peft
from textgym.task import Task
from textgym_agents.config import OnPolicyConfig
from textgym_agents.lm.nlpo import cut_of
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.processors import Processors
from textgym_agents.lm.rollout import Rollout, collect
from textgym_agents.lm.sampler import SampledCompletion, SampledRollouts, importance_weights

JsonValues = Mapping[str, Any]
_AT_ONCE = 64
_HINTS = {
    "load_lora_adapter": "; the server is to run with --enable-lora, a --max-lora-rank of the adapter's, and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and to see this machine's folder"
}


class SamplerError(RuntimeError):
    """A server did not do what it was asked for; names its address."""


class HTTPSampler:
    """`Sampler` by a server with vLLM's API; its model is the policy's base.

    Args:
        address: such as http://localhost:8000.
        vocab_size: tokens that the model has logits for.
        processors: the server is to cut its distribution by.
        min_new_tokens: tokens before which no stop id is written.
        timeout: seconds for one completion, or for the load of an adapter.
        retries: further attempts where there is no connection, after 1, 2, 4, ... times `pause` seconds.
    Raises: ValueError for an address of another form. No request is made before `update`.
    """

    def __init__(
        self,
        address: str,
        vocab_size: int,
        processors: Processors | None = None,
        min_new_tokens: int = 0,
        timeout: float = 600.0,
        retries: int = 3,
        pause: float = 1.0,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"sampler={address!r}: allowed is an address such as 'http://localhost:8000'")
        self.address = address.rstrip("/")
        self._processors, self._least, self._size = processors or Processors(), min_new_tokens, vocab_size
        self.timeout = timeout
        self._retries, self._pause = retries, pause
        self._adapter: str | None = None
        self._version = 0
        self._folder: Path | None = None

    def update(self, policy: LMPolicy, version: int) -> None:
        """See `Sampler.update`: the server loads the policy's adapter from a folder, and drops the one before.

        Raises: ValueError for a policy without an adapter, `SamplerError` if the server does not take it.
        """
        check_adapted(policy, self.address)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="textgym-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        # The server knows adapters by name: of each version another one, and of each run.
        name, before = f"{self._folder.name}-{version}", self._adapter
        policy.model.save_pretrained(self._folder / name, save_embedding_layers=False)  # "auto" may ask the hub
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(self._folder / name)})
        self._adapter, self._version = name, version
        if before is not None and before != name:
            self._post("unload_lora_adapter", {"lora_name": before})
            shutil.rmtree(self._folder / before, ignore_errors=True)

    def sample(
        self,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        stop_ids: Sequence[int],
        temperature: float,
        allowed_ids: Sequence[int] | None,
        seeds: Sequence[int],
    ) -> list[SampledCompletion]:
        """See `Sampler.sample`; a request for each prefix, so that each has its own seed. Raises: `SamplerError`."""
        if self._adapter is None:
            raise ValueError("sampler: it has no weights yet; `update` brings them in")
        shared = self._settings(stop_ids, temperature, allowed_ids)
        asked = [
            {**shared, "prompt": [int(token) for token in prefix], "max_tokens": int(budget), "seed": int(seed)}
            for prefix, budget, seed in zip(prefixes, budgets, seeds, strict=True)
        ]
        with ThreadPoolExecutor(min(_AT_ONCE, max(len(asked), 1))) as pool:
            return list(pool.map(self._complete, asked))

    def _settings(self, stop_ids: Sequence[int], temperature: float, allowed_ids: Sequence[int] | None) -> JsonValues:
        """Return what all requests have in common. What is left out, a server takes from the model's folder."""
        cut = self._processors
        return {
            "model": self._adapter,
            "n": 1,
            "temperature": temperature,
            "top_p": cut.top_p,
            "top_k": -1 if cut.top_k is None else cut.top_k,
            "min_p": cut.min_p,
            "min_tokens": self._least,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": [int(token) for token in stop_ids],
            "ignore_eos": True,  # of the stop ids that the model's folder names
            "skip_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **_allowed(allowed_ids, self._size),
        }

    def _complete(self, request: JsonValues) -> SampledCompletion:
        answer = self._post("completions", request)
        try:
            choice = answer["choices"][0]
        except (KeyError, IndexError, TypeError):
            raise self._error("completions", f"its answer has no choices: {answer!s:.200}") from None
        ids = _token_ids(choice)
        log_probs = (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None:
            raise self._error("completions", "its answer has no token ids; return_token_ids came with vLLM 0.10.2")
        if log_probs is None or len(log_probs) != len(ids) or None in log_probs:
            raise self._error("completions", f"its answer has no log-probability for each of {len(ids)} tokens")
        read = choice.get("prompt_token_ids")
        if read is not None and list(read) != request["prompt"]:
            raise self._error("completions", f"it read {len(read)} other tokens than the {len(request['prompt'])} sent")
        return SampledCompletion(np.array(ids, dtype=np.int64), np.array(log_probs, dtype=np.float64), self._version)

    def _post(self, call: str, values: JsonValues) -> Any:
        """Return the JSON, or text, that the server answers; where there is no connection, try again."""
        for attempt in range(self._retries + 1):
            try:
                status, text = self._request(call, values)
                break
            except TimeoutError:
                raise self._error(call, f"no answer in {self.timeout:g} s") from None
            except (OSError, HTTPException) as error:
                if attempt == self._retries:
                    raise self._error(call, f"no connection in {attempt + 1} attempts ({error})") from error
                time.sleep(self._pause * 2**attempt)
        if status != 200:
            raise self._error(call, f"it answers {status} ({_message(text):.300}){_HINTS.get(call, '')}")
        try:
            return json.loads(text)
        except ValueError:
            if call == "completions":
                raise self._error(call, f"its answer is no JSON: {text:.200}") from None
            return text

    def _request(self, call: str, values: JsonValues) -> tuple[int, str]:
        parts = urlsplit(self.address)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=self.timeout)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"{parts.path}/v1/{call}", json.dumps(values).encode(), headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def _error(self, call: str, what: str) -> SamplerError:
        return SamplerError(f"sampler={self.address!r}, {call}: {what}")


def sampling(task: Task, config: OnPolicyConfig, policy: LMPolicy) -> Callable[..., Rollout]:
    """Give a policy its cut, and return what plays its batches: `collect`, or the same by the server `config.sampler`.

    The server is not asked yet. Raises: ValueError for a server's policy without an adapter, or task with a mask.
    """
    processors = Processors(config.top_p, config.top_k, config.min_p)
    policy.cut = cut_of(task, processors, policy, config)
    if config.sampler is None:
        return collect
    check_adapted(policy, config.sampler)
    sampler = HTTPSampler(config.sampler, policy.backbone.vocab_size, processors, task.min_new_tokens)
    weigh = partial(
        importance_weights,
        how=config.importance,
        level=config.importance_level,
        cap=config.importance_cap,
        floor=config.importance_floor,
    )
    return SampledRollouts(task, sampler, weigh, config.micro_batch)


def check_adapted(policy: LMPolicy, address: str) -> None:
    """Raise ValueError unless what a policy learns is an adapter, which a server can load."""
    if not is_peft(policy.model):
        raise ValueError(
            f"sampler={address!r}: a server takes new weights as a LoRA adapter, and this policy trains all of its "
            f"weights ({type(policy.model).__name__}); allowed are PEFT models, or sampler=None"
        )


def _allowed(allowed_ids: Sequence[int] | None, size: int) -> JsonValues:
    """Return the setting that keeps a server to some tokens: vLLM takes at most about a thousand of either kind."""
    if allowed_ids is None:
        return {}
    allowed = {int(token) for token in allowed_ids}
    forbidden = [token for token in range(size) if token not in allowed]
    if len(forbidden) < len(allowed):
        return {"logit_bias": {str(token): -100.0 for token in forbidden}}
    return {"allowed_token_ids": sorted(allowed)}


def _token_ids(choice: JsonValues) -> list[int] | None:
    """Return the ids of a completion: as such, or out of tokens that are written "token_id:7"."""
    if choice.get("token_ids") is not None:
        return [int(token) for token in choice["token_ids"]]
    tokens = (choice.get("logprobs") or {}).get("tokens")
    if tokens is None or not all(str(token).startswith("token_id:") for token in tokens):
        return None
    return [int(str(token).removeprefix("token_id:")) for token in tokens]


def _message(text: str) -> str:
    """Return the message of a server's error."""
    try:
        found = json.loads(text)
        return str(found.get("error", {}).get("message") or found.get("message") or text)
    except (ValueError, AttributeError):
        return text
