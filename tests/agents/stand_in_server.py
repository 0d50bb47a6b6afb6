"""A small server that answers as vLLM's OpenAI-compatible API does, with a tiny model and the own decoder."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import peft
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.processors import Processors
from textgym_agents.lm.sampler import DecoderSampler


class StandIn(ThreadingHTTPServer):
    """Serves adapters over `make_base()`.

    Attributes:
        requests: (call, body) of all requests. adapters: name -> policy.
        replay: seed -> (ids, log-probs) to answer with, in place of sampling.
        edit: changes an answer before it is sent, given the call. failures: connections to close without an answer.
    """

    daemon_threads = True

    def __init__(self, make_base):
        super().__init__(("127.0.0.1", 0), Handler)
        self.make_base, self.lock = make_base, threading.Lock()
        self.requests, self.adapters, self.replay = [], {}, {}
        self.edit, self.failures = lambda call, status, answer: (status, answer), 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Say nothing: closed connections are wanted."""

    def answer(self, call, body):
        if call == "load_lora_adapter":
            if body["lora_name"] in self.adapters:
                return 400, error(f"The lora adapter '{body['lora_name']}' has already been loaded.")
            model = peft.PeftModel.from_pretrained(self.make_base(), body["lora_path"]).eval()
            size = model.get_output_embeddings().weight.shape[0]
            self.adapters[body["lora_name"]] = LMPolicy(model, np.ones(size, dtype=bool))
            return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        if call == "unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, "Success"
        if call != "completions":
            return 404, error("Not Found")
        if body["model"] not in self.adapters:
            return 404, error(f"The model `{body['model']}` does not exist.")
        ids, log_probs = self.replay[body["seed"]] if self.replay else self.sample(body)
        texts = [f"token_id:{token}" for token in ids]
        choice = {
            "index": 0,
            "text": "",
            "finish_reason": "stop" if ids[-1] in body["stop_token_ids"] else "length",
            "token_ids": ids,
            "prompt_token_ids": body["prompt"],
            "logprobs": {"tokens": texts, "token_logprobs": log_probs, "top_logprobs": None},
        }
        return 200, {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def sample(self, body):
        policy = self.adapters[body["model"]]
        top_k = None if body["top_k"] == -1 else body["top_k"]
        processors = Processors(body["top_p"], top_k, body["min_p"])
        sampler = DecoderSampler(policy, processors, body["min_tokens"])
        allowed = body.get("allowed_token_ids")
        if "logit_bias" in body:
            allowed = [i for i in range(policy.backbone.vocab_size) if str(i) not in body["logit_bias"]]
        rows = [body["prompt"]], [body["max_tokens"]], body["stop_token_ids"], body["temperature"], allowed
        (found,) = sampler.sample(*rows, [body["seed"]])
        return found.ids.tolist(), found.log_probs.tolist()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.path.removeprefix("/v1/")
        with self.server.lock:  # one model, one cache
            self.server.requests.append((call, body))
            if self.server.failures:
                self.server.failures -= 1
                self.connection.close()
                return
            status, answer = self.server.edit(call, *self.server.answer(call, body))
        data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def error(message):
    return {"error": {"message": message, "type": "NotFoundError", "param": None, "code": 404}}


@contextmanager
def serving(make_base):
    """Run a stand-in as long as the block runs."""
    server = StandIn(make_base)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def slow(call, status, answer):
    """An `edit` that takes its time."""
    if call == "completions":
        time.sleep(0.5)
    return status, answer
