"""What a run of a policy gradient on a causal LM needs in memory, part by part, from the model's config alone.

Weights are counted. What a phase holds beside them is found by running its operations on tensors without data, which
know their shapes, and adding up the storages that live at once: so it holds for any architecture and any precision.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from textgym.checks import check_choice, check_count, first_line
from textgym.lm.backbone import Backbone, HuggingFaceBackbone, recompute_layers
from textgym.lm.categorical import sample, states_at_once, statistics
from textgym.lm.llama import LlamaBackbone, supports
from textgym_agents.lm.lora import add_lora
from textgym_agents.lm.shapes import shallow
from textgym_agents.model_settings import LoRASettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from textgym_agents.config import OnPolicyConfig

GIB = 2**30
LIBRARIES = GIB // 2
"""Bytes of Python and its libraries, or of a CUDA context: about half a GiB either way."""
_UPDATE = ("update", "loss", "top", "bottom")  # peaks: of all, up to the loss, in the last and first layer's backward
_MEASURES = ("cache", "read", "extending", "drawing", "scoring", "chunk", *_UPDATE)
_ALWAYS = ("weights of the policy", "weights of the reference", "gradients", "Adam's moments", "token sets, as bits")
_SCORED = ("features of a batch, of the policy", "features of a batch, of the reference")
_PHASES = {  # parts that are held at moments of a phase, of which the peak is one
    "sampling": (
        ("prompts of a batch, as they are read",),
        ("key-value cache", "logits of a token of a batch", _SCORED[0]),
        (_SCORED[0], "the same, being put in order"),
        (_SCORED[0], _SCORED[0], "token sets, being put in order"),  # features: in order, and by steps
    ),
    "scoring": ((*_SCORED, "micro-batch, as the reference reads it"), (*_SCORED, "chunk of logits")),
}
_GROUPED = "transformers.integrations.moe._can_use_grouped_mm"
_DEPTHS = (3, 5)  # layers of the models that a deeper one is reckoned from
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Plan:
    """What a run does, as far as its memory depends on it; named as the settings of agents are.

    Args:
        prompt_tokens, new_tokens: of the longest prompt and answer.
        exact: whether the KL is over the whole vocabulary, for which the reference's features are kept.
        lora_rank, lora_targets: of an adapter; the reference is then the model without it.
        reference_precision: of the reference's copy of the weights.
        reference_device: where the reference is, if it is not where the policy is.
        token_sets: held for each state, a bit a token: what the task's mask allows, and what a cut such as top-p keeps.
        device: cpu or cuda: how many logits are made at once.
    Raises: ValueError for a number out of range or an unknown name.
    """

    batch: int = 256
    prompt_tokens: int = 512
    new_tokens: int = 512
    micro_batch: int = 64
    minibatches: int = 4
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    exact: bool = True
    lora_rank: int | None = None
    lora_targets: str = "all-linear"
    reference_precision: Literal["float32", "bfloat16"] = "float32"
    reference_device: str | None = None
    token_sets: int = 0
    device: Literal["cpu", "cuda"] = "cuda"

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_tokens", "new_tokens", "micro_batch", "minibatches"):
            check_count(name, getattr(self, name))
        check_count("token_sets", self.token_sets, least=0)
        self.lora.check_lora()
        for name in ("precision", "reference_precision"):
            check_choice(name, getattr(self, name), ("float32", "bfloat16"))
        check_choice("device", self.device, ("cpu", "cuda"))

    @property
    def lora(self) -> LoRASettings:
        """The settings of the adapter."""
        return LoRASettings(lora_rank=self.lora_rank, lora_targets=self.lora_targets)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a run.

    Attributes:
        parameters: of the model; a number, no bytes.
        weights: of policy and reference, which are there once the agent is made.
        parts: of everything that is held at one time or another, by name.
        phases: at the peak of each phase: the sum of the parts that are held then.
        elsewhere: weights of the reference on another device, which count nowhere else, by its name.
    """

    parameters: int
    weights: int
    parts: dict[str, int]
    phases: dict[str, int]
    elsewhere: dict[str, int]

    @property
    def peak(self) -> int:
        """The peak of the whole run, bytes."""
        return max(self.phases.values())


def plan_of(config: OnPolicyConfig, prompt_tokens: int, new_tokens: int, masked: bool = False) -> Plan:
    """Return the plan of settings; masked: by the task; no batch: 256. Raises: ValueError for fsdp, a mask policy."""
    if config.parallel == "fsdp":
        raise ValueError("parallel='fsdp': the estimate is of one process, 'ddp'; docs/scale.md has the costs of more")
    if config.mask_top_p < 1:
        raise ValueError(f"mask_top_p={config.mask_top_p}: the estimate knows no mask policy; allowed is 1.0")
    names = ("batch", "micro_batch", "minibatches", "precision", "gradient_checkpointing")
    lora = ("lora_rank", "lora_targets", "reference_precision")
    settings: dict[str, Any] = {name: getattr(config, name) for name in (*names, *lora)}
    settings["batch"] = settings["batch"] or Plan.batch
    where = config.reference_device or config.device
    if _place("reference_device", where) != _place("device", config.device):
        settings |= {"reference_device": where}
    settings |= {"exact": config.kl == "exact", "device": "cpu" if config.device == "cpu" else "cuda"}
    cut = config.top_p < 1 or config.top_k is not None or config.min_p > 0
    return Plan(prompt_tokens=prompt_tokens, new_tokens=new_tokens, token_sets=masked + cut, **settings)


def _place(argument: str, name: str) -> tuple[str, int]:
    try:
        device = torch.device("cuda" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"{argument}={name!r:.80}: allowed: 'auto', 'cpu', 'cuda', 'cuda:1', ...") from error
    return device.type, device.index or 0


def estimate(config: PretrainedConfig, plan: Plan) -> MemoryEstimate:
    """Return what a run of an on-policy agent needs; no weights are loaded or made.

    Args:
        config: of a causal LM; it is not changed.
    Raises: ValueError for a model that cannot be run so, or has no layers to run again where that is asked for.
    """
    other: dict[str, int] = {}
    # The grouped product of experts takes fakes in bfloat16 alone; the one in its place makes as much.
    quiet = patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True)  # the error says it all
    with quiet, FakeTensorMode(), patch(_GROUPED, return_value=False, create=True):
        try:
            run = _Run(config, plan)
            measures = _measures(config, plan)
            turned = replace(plan, gradient_checkpointing=not plan.gradient_checkpointing)
            with suppress(ValueError):  # no layers that can run again
                other = _measures(config, turned, update_alone=True)
        except (ImportError, ValueError):
            raise
        except Exception as error:  # of an operation that has to see the data
            raise ValueError(
                f"model: a {config.model_type} is not estimated: it does not run without data ({first_line(error):.99})"
            ) from error
    copied = 0 if plan.lora_rank else run.parameters * _BYTES[plan.reference_precision]
    elsewhere = {plan.reference_device: copied} if plan.reference_device and copied else {}
    here, trained, states = 0 if elsewhere else copied, run.trained * 4, plan.batch * plan.new_tokens
    features, bits = states * run.feature_bytes if plan.exact else 0, states * -(-run.size // 8)
    micro, other_micro = (max(each[name] for name in _UPDATE) - trained if each else 0 for each in (measures, other))
    names = ("micro-batch, every layer's values kept", "micro-batch, with gradient checkpointing")
    micro_name, other_name = names[:: -1 if plan.gradient_checkpointing else 1]
    parts = {
        "weights of the policy": run.policy,
        "weights of the reference": here,
        "gradients": trained,
        "Adam's moments": 2 * trained,
        "Adam's step": trained,
        "prompts of a batch, as they are read": measures["read"],
        "key-value cache": measures["cache"],
        "logits of a token of a batch": max(measures["extending"], measures["drawing"]),
        "features of a batch, of the policy": features,
        "the same, being put in order": 2 * features,
        "features of a batch, of the reference": features if plan.exact else 4 * states,
        "micro-batch, as the reference reads it": 0 if elsewhere else measures["scoring"],
        "token sets, as bits": plan.token_sets * bits,
        "token sets, being put in order": (plan.token_sets + 1) * bits if plan.token_sets else 0,
        "chunk of logits": measures["chunk"],
        micro_name: max(micro, 0),
        other_name: max(other_micro, 0),
    }
    every = _PHASES | {"update": tuple((*_SCORED, each) for each in (micro_name, "Adam's step"))}
    phases = {
        phase: max(sum(parts[each] for each in (*_ALWAYS, *some)) for some in moments)
        for phase, moments in every.items()
    }
    return MemoryEstimate(run.parameters, run.policy + here, {k: v for k, v in parts.items() if v}, phases, elsewhere)


def _measures(config: PretrainedConfig, plan: Plan, update_alone: bool = False) -> dict[str, int]:
    """Return what `_Run` measures, by name; of a deep model from two shallow ones, since every layer adds the same."""
    depth = config.get_text_config().num_hidden_layers
    shapes = (config,) if depth <= sum(_DEPTHS) else tuple(shallow(config, layers) for layers in _DEPTHS)
    found = [_Run(each, plan).measures(update_alone) for each in shapes]
    if len(found) == 1:
        return found[0]
    less, more = found
    steps = (depth - _DEPTHS[1]) / (_DEPTHS[1] - _DEPTHS[0])
    return {name: round(more[name] + steps * (more[name] - less[name])) for name in more}


class _Run:
    """A policy whose tensors hold no data, and the bytes that its operations hold at their peak, weights apart."""

    def __init__(self, config: PretrainedConfig, plan: Plan) -> None:
        self.plan, self._layers = plan, config.get_text_config().num_hidden_layers
        model = _made(config, plan)
        everything = list(model.parameters())
        self.policy = sum(each.numel() * each.element_size() for each in everything)
        self.trained = sum(each.numel() for each in everything if each.requires_grad)
        self.parameters = sum(each.numel() for name, each in model.named_parameters() if "lora_" not in name)
        lean = plan.precision == "float32" and supports(model)
        self._backbone: Backbone = LlamaBackbone(model) if lean else HuggingFaceBackbone(model)
        self._model, self.size = model, self._backbone.vocab_size
        self._bias, self._value = torch.zeros(self.size), nn.Linear(self._backbone.hidden_size, 1)
        with torch.no_grad(), self._precision():
            place = torch.zeros(1, dtype=torch.long)
            self._feature = self._backbone.features(place[None], place, place)
        self.feature_bytes = self._feature.nbytes

    def measures(self, update_alone: bool = False) -> dict[str, int]:
        """Return the bytes of each of `_MEASURES` at its peak."""
        found = () if update_alone else (*self.sampling(), *self.scoring())
        return dict(zip(_MEASURES[6 - len(found) :], (*found, *self.update()), strict=True))

    def sampling(self) -> tuple[int, int, int, int]:
        """Return the bytes of reading prompts, of the full cache, of a token more, and of drawing it."""
        plan = self.plan
        with torch.no_grad(), self._live() as live:
            self._open(plan.prompt_tokens)
        read = live.peak
        with torch.no_grad(), self._live() as live:
            cache, features = self._open(plan.prompt_tokens + plan.new_tokens - 1)
            held = live.now
            live.peak = live.now
            tokens = torch.zeros(plan.batch, dtype=torch.long)
            with self._precision():
                features = self._backbone.extend(cache, tokens)
            extending, live.peak = live.peak - held, live.now
            sample(self._log_probs(features), torch.zeros(plan.batch))
        return held, read, extending, live.peak - held

    def scoring(self) -> tuple[int, int]:
        """Return the bytes of reading a micro-batch without a gradient, and of the chunks that are scored."""
        plan = self.plan
        rows = min(plan.micro_batch, plan.batch)
        with torch.no_grad(), self._live() as live:
            self._features(rows)
        read, states = live.peak, (plan.batch if plan.exact else rows) * plan.new_tokens
        size = states_at_once(plan.device, self.size)
        with torch.no_grad(), self._live() as live:
            for _ in range(min(2, -(-states // size))):  # the log-probabilities of the first outlast it
                old = self._log_probs(self._feature.expand(min(size, states), -1))
                if plan.exact:
                    base = self._log_probs(self._feature.expand(min(size, states), -1))
                    torch.linalg.vecdot(old.exp(), old - base)
        return read, live.peak

    def update(self) -> tuple[int, ...]:
        """Return the bytes of `_UPDATE` for a micro-batch, the gradients included."""
        rows = -(-self.plan.batch // self.plan.minibatches)  # of a mini-batch
        trained = [each for each in self._model.parameters() if each.requires_grad]
        peaks: list[int] = []
        with self._live() as live:

            def mark(_: object = None) -> None:
                peaks.append(live.peak)
                live.peak = live.now

            for each in (*trained, *self._value.parameters()):
                if rows > self.plan.micro_batch:  # the gradients of those before
                    each.grad = torch.zeros_like(each)
            features = self._features(min(self.plan.micro_batch, rows))
            gradients = torch.zeros_like(features)  # of the chunks before
            mark()
            for _ in range(2):
                self._add_chunk(features)
            mark()
            hooks = [each.register_post_accumulate_grad_hook(mark) for each in trained]
            if features.requires_grad:
                features.backward(gradients.clone())
            mark()
            for hook in hooks:
                hook.remove()
        layer = len(peaks) // self._layers + 2
        return max(peaks), max(peaks[:2]), max(peaks[2:][:layer]), max(peaks[2:][-layer:])

    def _open(self, tokens: int) -> tuple[object, Tensor]:
        ids = torch.zeros((self.plan.batch, tokens), dtype=torch.long)
        with self._precision():
            return self._backbone.open(ids, torch.full((self.plan.batch,), tokens), 1)

    def _features(self, rows: int) -> Tensor:
        plan = self.plan
        ids = torch.zeros((rows, plan.prompt_tokens + plan.new_tokens - 1), dtype=torch.long)
        places = torch.zeros(rows * plan.new_tokens, dtype=torch.long)
        with self._precision():
            return self._backbone.features(ids, places, places)

    def _add_chunk(self, features: Tensor) -> None:
        """Go forward and backward through the heads and the loss of as many states as are taken at once."""
        at = slice(0, states_at_once(self.plan.device, self.size))
        leaf = features[at].detach().requires_grad_()
        logits, values = self._heads(leaf)
        with torch.no_grad():
            base = self._log_probs(leaf.detach()) if self.plan.exact else None
        actions = torch.zeros(len(leaf), dtype=torch.long)
        taken, divergence, entropy = statistics(logits, actions, base)
        (taken + divergence + entropy + values).sum().backward()

    def _heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and values, as `LMPolicy.heads` does."""
        with self._precision():
            logits, hidden = self._backbone.read_out(features)
        return logits.float() + self._bias, self._value(hidden.float()).squeeze(-1)

    def _log_probs(self, features: Tensor) -> Tensor:
        return torch.log_softmax(self._heads(features)[0], -1)

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.plan.precision == "bfloat16")

    @contextmanager
    def _live(self) -> Iterator[_Live]:
        """Count what a block makes; what it leaves behind is forgotten."""
        live = _Live([*self._model.parameters(), *self._model.buffers(), *self._value.parameters(), self._bias])
        with live:
            yield live
        self._model.zero_grad(set_to_none=True)
        self._value.zero_grad(set_to_none=True)


def _made(config: PretrainedConfig, plan: Plan) -> PreTrainedModel:
    """Return the policy of a plan, as an agent makes it."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    frozen = plan.lora_rank is not None and plan.precision == "bfloat16"
    # PEFT moves what it adds, which fakes refuse and a device without data does not.
    with unset_fake_temporarily(), torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if frozen else torch.float32)
        model.tie_weights()
        if plan.lora_rank is not None:
            model = cast("PreTrainedModel", add_lora(model, plan.lora, seed=0))
    made = {each: torch.empty(each.shape, dtype=each.dtype) for each in (*model.buffers(), *model.parameters())}
    made |= {each: nn.Parameter(made[each], each.requires_grad) for each in model.parameters()}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: made[each] for name, each in tensors.items() if each is not None})
    if plan.gradient_checkpointing:
        recompute_layers(model)
    return cast("PreTrainedModel", model.eval())


class _Live(TorchDispatchMode):
    """Add up the storages that operations make, as long as they live. Args: known: tensors that do not count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes = dict.fromkeys((each.untyped_storage()._cdata for each in known), 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and take note of what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, place: int) -> None:
        self.now -= self._sizes.pop(place)
