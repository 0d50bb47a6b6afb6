"""The storage of an LM agent: Hugging Face models, tensors and JSON; and of modules and optimisers."""

from __future__ import annotations

import copy
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from textgym.checks import JsonObject
from textgym.files import read_json, reading, recover_folder, replace_folder
from textgym.lm.backbone import is_peft
from textgym.lm.causal import load_adapter, load_causal_lm
from textgym.lm.encdec import decoder_start, is_encoder_decoder
from textgym.task import Task, has_language_model, reference_model
from textgym.vector import TokenVectorEnv
from textgym.vocab import load_vocabulary
from textgym.world import MODEL_PATH
from textgym_agents.config import LMConfig
from textgym_agents.lm import table  # noqa: F401  (which registers itself)
from textgym_agents.lm.devices import Devices
from textgym_agents.lm.lora import merged, model_tensors, plain_tensors, read_adapter, save_model
from textgym_agents.lm.metrics import EntropyController, KLController
from textgym_agents.lm.parts import (
    SHARDS,
    Stored,
    is_sharded,
    load_whole,
    loaded,
    part_like,
    read_parts,
    read_slices,
    with_prefix,
    without_prefix,
    write_parts,
)
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.sharding import release
from textgym_agents.lm.start import AdapterOff, FrozenPolicy, fingerprint, has_fingerprint
from textgym_agents.saving import HEAD, Saved, count, flag, number, read_saved, text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OptimizerState = Mapping[int, Mapping[str, object]]
_COUNTERS = ("iteration", "episodes", "budget")
_SETTLED = ("toward", "correlation", "rounding", "reach")  # of a rate that the agent finds, where they are not 0
_NUMBERS = ("value_offset", "learning_rate", *_SETTLED)


class SavedLM(ABC):
    """The part of an LM agent that is saved and loaded."""

    name: str
    config_type: ClassVar[type[LMConfig]]
    task: Task
    config: LMConfig
    devices: Devices
    policy: LMPolicy
    reference: FrozenPolicy
    has_own_reference: bool
    optimizer: torch.optim.Optimizer
    controller: KLController
    entropy: EntropyController | None = None
    learning_rate: float
    value_scale: float | None
    iteration: int
    episodes: int
    budget: int
    chosen: str
    scorers: Sequence[JsonObject] = ()
    """The states of the reward that each device has left, where this agent was loaded."""

    @abstractmethod
    def __init__(self, task: Task, config: LMConfig, model: PreTrainedModel | None = None) -> None: ...

    def memory(self) -> dict[str, Tensor]:
        """Return what learning needs to resume beside parameters and counters, such as a replay."""
        return {} if self.policy.cut is None else self.policy.cut.tensors(self.policy.model)

    def restore_memory(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `memory` returned. Raises: KeyError for what this agent has no place for."""
        if self.policy.cut is not None:
            self.policy.cut.restore(tensors)
        elif tensors:
            raise KeyError(next(iter(tensors)))

    def save(self, path: str | Path) -> None:
        """See `Agent.save`: safetensors and JSON; a reader never sees half of it.

        Of several devices all call this, and the one that leads writes; where weights are sharded, each its own part.
        """
        scorers = self.devices.gather_json(self.task.scorer.state_dict()) if self.devices.world > 1 else []
        release(self.policy, self.reference)
        tensors = with_prefix("value_head.", self.policy.value_head.state_dict())
        tensors |= with_prefix("optimizer.", optimizer_tensors(self.optimizer))
        tensors |= with_prefix("memory.", self.memory()) | self._weights()
        state: dict[str, object] = {**self._origin(), **({"scorers": scorers} if scorers else {})}
        state |= {name: own for name in (*_COUNTERS, *_NUMBERS) if (own := getattr(self, name)) or name not in _SETTLED}
        state |= {
            "beta": self.controller.valued,
            "value_scale": self.value_scale,
            "own_reference": self.has_own_reference,
            "chosen": self.chosen,
            "frozen": [name for name, p in self.policy.named_parameters() if not p.requires_grad],
            "stop_ids": list(self.task.vocabulary.stop_ids),
        }
        if self.entropy is not None and self.entropy.target is not None:
            state["entropy_coefficient"] = self.entropy.coefficient
        folders = self._folders(Path(path).absolute())
        write_parts(self.devices, tensors, path, self.name, self.config, self.task, state=state, folders=folders)

    def _weights(self) -> dict[str, Tensor]:
        """Return the sharded weights that are saved, under the names of the folders that lack them; no adapter's."""
        model = self.policy.model
        if not is_sharded(model):
            return {}
        if not is_peft(model):
            own = {} if self.reference.base else with_prefix("reference.", plain_tensors(self.reference.model))
            return with_prefix("model.", plain_tensors(model)) | own
        return with_prefix("base.", plain_tensors(model)) if self._base is None else {}

    def _origin(self) -> dict[str, str]:
        """Return where the start is to be found, and its digest; {} where it is in no other place and saved here."""
        if (base := self.reference.base) is None:
            return {}
        place = {"reference": "builtin" if Path(base) == MODEL_PATH.resolve() else base}
        return (place if self._base is None else {"base": base}) | {"start": self._start}

    @cached_property
    def _start(self) -> str:
        """The digest of the start, which stays as it is."""
        return fingerprint(self.reference.model, whole=self.config.lora_rank is None)

    @property
    def _base(self) -> str | None:
        """Where the model under a new adapter is; None where it is in no other place than here."""
        return self.reference.base if isinstance(self.reference, AdapterOff) else None

    def _folders(self, path: Path) -> dict[str, Callable[[Path], object]]:
        """Return what writes the models: policy, and reference and the model under an adapter unless they have a name.

        All ranks call this, and one calls what is returned. Args: path: of the whole.
        """
        model, base = self.policy.model, self._base or str(path / "base")

        def writer(model: PreTrainedModel) -> Callable[[Path], object]:
            if is_sharded(model) and not is_peft(model):
                return model.config.save_pretrained  # its weights are those of `_weights`
            tensors = model_tensors(model, self.devices.leads)
            return lambda folder: save_model(model, folder, base, tensors)

        def write_base(folder: Path) -> None:
            plain = model.get_base_model()
            if is_sharded(model):
                plain.config.save_pretrained(folder)
            else:
                plain.save_pretrained(folder, state_dict={n: t.detach() for n, t in plain_tensors(model).items()})

        write_model = writer(model)

        def write_policy(folder: Path) -> None:
            write_model(folder)
            self.task.vocabulary.save(folder)

        found: dict[str, Callable[[Path], object]] = {"model": write_policy}
        if self.config.lora_rank is None and self.reference.base is None:
            found["reference"] = writer(self.reference.model)
        return found | ({"base": write_base} if is_peft(model) and self._base is None else {})

    @classmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> Self:
        """See `Agent.load`. Learning continues as if it had not been interrupted."""
        task = env.unwrapped.task
        agent = read_saved(path, cls.name, lambda saved: cls._restored(saved, task), task)
        states = agent.scorers or [task.scorer.state_dict()]
        task.scorer.load_shares(states, agent.devices.rank, agent.devices.world)
        return agent

    @classmethod
    def _restored(cls, saved: Saved, task: Task) -> Self:
        state, tensors = saved.state, read_parts(saved)
        agent = cls._begun(saved, task, tensors)
        if agent.config.lora_rank is not None:
            read_adapter(agent.policy.model, saved.folder / "model")
        elif weights := without_prefix("model.", tensors):
            load_whole(agent.policy.model, weights)
        else:
            load_whole(agent.policy.model, copy.deepcopy(_load_model(saved.folder, "model", tensors).state_dict()))
        for name, parameter in agent.policy.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
        load_whole(agent.policy.value_head, without_prefix("value_head.", tensors))
        restore_optimizer(agent.optimizer, without_prefix("optimizer.", tensors))
        if memory := without_prefix("memory.", tensors):
            agent.restore_memory({name: loaded(each) for name, each in memory.items()})
        agent.controller.load(number(state, "beta"))
        if agent.entropy is not None and agent.entropy.target is not None:
            agent.entropy.coefficient = number(state, "entropy_coefficient")
        for name, read in {**dict.fromkeys(_COUNTERS, count), **dict.fromkeys(_NUMBERS, number)}.items():
            setattr(agent, name, read(dict.fromkeys(_SETTLED, 0.0) | state, name))
        agent.value_scale = None if state["value_scale"] is None else number(state, "value_scale")
        agent.has_own_reference = flag(state, "own_reference") or is_sharded(agent.policy)
        agent.chosen = text({"chosen": ""} | state, "chosen")
        agent.scorers = state.get("scorers", []) if saved.same_task else []
        return agent

    @classmethod
    def _begun(cls, saved: Saved, task: Task, tensors: Mapping[str, Stored]) -> Self:
        """Return the agent as it was before it learned: from the model that it names, else from what is saved here."""
        config, state = cls.config_type(**saved.config), saved.state
        named = state.get("base") or state.get("reference")
        source = str(MODEL_PATH) if named == "builtin" else named or config.model
        own = str(reference_model(task)) if has_language_model(task) else None
        places = [own, source] if saved.same_task and not state["own_reference"] else [source, own]
        problems: dict[str | None, ValueError] = {}
        for place in [each for each in places if each is not None and "start" in state]:
            try:
                agent = cls(task, replace(config, model=place))
                if not has_fingerprint(agent.reference.model, state["start"], whole=config.lora_rank is None):
                    raise ValueError(f"model={place!r}: its weights are not those that this agent started from")
                agent.config = replace(agent.config, model=config.model)
                return agent
            except ValueError as error:
                problems[place] = error
        if named is not None:
            raise ValueError(
                f"{saved.folder}: needs the model that it started from ({problems[source]}); put it back there, or "
                "name the place where it is now as the task's reference (reference=FOLDER_OR_HUB_ID)"
            )
        load, name = (_load_model, "reference") if config.lora_rank is None else (_load_plain, "base")
        return cls(task, config, model=load(saved.folder, name, tensors))


def _load_model(folder: Path, name: str, tensors: Mapping[str, Stored]) -> PreTrainedModel:
    adapted = (folder / "base").is_dir()
    plain = _load_plain(folder, "base" if adapted else name, tensors)
    return load_adapter(folder / name, plain) if adapted else plain


def _load_plain(
    folder: Path, name: str, tensors: Mapping[str, Stored], dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a model without an adapter from its folder in a checkpoint, or from there and from the ranks' parts."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    weights = without_prefix(f"{name}.", tensors)
    if not weights:
        return load_causal_lm(folder / name, dtype)
    logging.disable_progress_bar()  # as `load_causal_lm` does
    with no_init_weights():
        config = AutoConfig.from_pretrained(folder / name, trust_remote_code=False)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    load_whole(model, weights)
    model.eval()
    return model


def export_model(path: str | Path, out: str | Path) -> JsonObject:
    """Write the model of a saved LM agent with its tokenizer, for `AutoModelForCausalLM` and `AutoTokenizer`.

    The generation config samples as the agent does: its temperature, top-k, top-p or min-p, every token that its
    vocabulary allows, up to as many as it had. A task's grammar and its `min_new_tokens` are not the model's.

    Args: path: the agent's folder, or that of its run. out: a new folder.
    Returns: the agent's name, `temperature`, `adapter` (whether there was one), `parameters` and `suppressed`, the
        number of tokens that are never to be written.
    Raises: ValueError if there is no such agent, `out` exists, the model under its adapter has changed, or the agent
        samples as `generate` cannot.
    """
    from transformers import GenerationConfig

    folder, out = Path(path), Path(out)
    folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if os.path.lexists(out):
        raise ValueError(f"out={str(out)!r}: it exists; allowed is a new folder")
    recover_folder(folder)
    if not (folder / HEAD).is_file():
        raise ValueError(f"path={str(path)!r}: no saved agent there")
    head = read_json(folder / HEAD)
    if not (folder / "model").is_dir():
        raise ValueError(f"path={str(path)!r}: agent {head.get('agent')!r:.80} has no language model")
    config = head["config"]
    if config.get("mask_top_p", 1.0) < 1:
        raise ValueError(f"path={str(path)!r}: generate() knows no mask policy; allowed is an agent with mask_top_p=1")
    if config.get("top_p", 1.0) < 1 and config.get("min_p"):
        raise ValueError(
            f"path={str(path)!r}: generate() cuts by top_p before min_p; allowed is an agent with one of them"
        )
    with reading(folder, "the saved agent"):
        model = _plain_model(folder, head)
        stop = head["state"].get("stop_ids")  # which the tokenizer's files do not say
        size = model.config.get_text_config().vocab_size
        vocabulary = load_vocabulary(str(folder / "model"), stop=stop, vocab_size=size)
    suppressed = np.flatnonzero(~vocabulary.allowed).tolist()
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=config.get("temperature", 1.0),
        top_k=config.get("top_k") or 0,  # left out, it would be 50
        top_p=config.get("top_p", 1.0),
        min_p=config.get("min_p") or None,
        eos_token_id=[*vocabulary.stop_ids] or None,
        pad_token_id=vocabulary.pad_id,
        decoder_start_token_id=decoder_start(model) if is_encoder_decoder(model) else None,
        suppress_tokens=suppressed or None,
        max_new_tokens=head["task"]["max_new_tokens"],
    )

    def write(place: Path) -> None:
        model.save_pretrained(place)
        for file in (folder / "model").iterdir():
            if file.name.startswith("tokenizer") or file.suffix == ".jinja" or file.name == "special_tokens_map.json":
                shutil.copyfile(file, place / file.name)

    replace_folder(out, write)
    return {
        "agent": head["agent"],
        "temperature": model.generation_config.temperature,
        "adapter": (folder / "model" / "adapter_config.json").is_file(),
        "parameters": model.num_parameters(),
        "suppressed": len(suppressed),
    }


def _plain_model(folder: Path, head: JsonObject) -> PreTrainedModel:
    """Return the policy's model in float32. Raises: ValueError if the model under an adapter is another one now."""
    config, state, slices = head["config"], head["state"], read_slices(folder / SHARDS)
    if not (folder / "model" / "adapter_config.json").is_file():
        return _load_plain(folder, "model", slices)
    has_bf16 = config.get("lora_rank") is not None and config.get("precision") == "bfloat16"
    dtype = torch.bfloat16 if has_bf16 else torch.float32
    adapted = load_adapter(folder / "model", state.get("base") or _load_plain(folder, "base", slices, dtype), dtype)
    if state.get("base") and not has_fingerprint(adapted, state["start"]):
        raise ValueError(f"base={state['base']!r}: its weights are not those that the adapter was trained on")
    # Merged in float32: what an adapter adds is often below the rounding of bfloat16.
    return merged(adapted.float())


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's trained parameters and its buffers by name; tied ones once, under their first name."""
    frozen = {id(parameter) for parameter in module.parameters() if not parameter.requires_grad}
    found = {id(tensor): name for name, tensor in reversed(module.state_dict(keep_vars=True).items())}
    tensors = module.state_dict()
    return {name: tensors[name] for key, name in found.items() if key not in frozen}


def restore_module(module: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Put back what `module_tensors` returned. Raises: ValueError or RuntimeError for what does not fit."""
    wanted = module_tensors(module)
    if tensors.keys() != wanted.keys():
        odd = sorted(tensors.keys() ^ wanted.keys())[0]
        raise ValueError(f"the tensor {odd!r} is missing, or is none of the model's")
    module.load_state_dict({name: part_like(tensor, wanted[name]) for name, tensor in tensors.items()}, strict=False)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's moments and counts as "INDEX.ENTRY" -> tensor; its settings are those of the config."""
    state: OptimizerState = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": tensor
        for index, entries in state.items()
        for key, tensor in entries.items()
        if isinstance(tensor, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Stored]) -> None:
    """Put back what `optimizer_tensors` returned. Raises: ValueError for what does not fit its parameters."""
    state: dict[int, dict[str, Stored]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    check_moments(parameters, state)
    for place, entries in state.items():
        entries.update({key: part_like(tensor, parameters[place]) for key, tensor in entries.items()})
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def check_moments(parameters: Sequence[Tensor], state: OptimizerState) -> None:
    """Raise ValueError unless an optimiser's saved state has the same entries, of fitting shapes, for its parameters.

    torch takes whatever there is and fails at the next step.
    """
    names: set[str] = set().union(*state.values())
    for index, entries in state.items():
        shapes = [(), tuple(parameters[index].shape)]
        for name in names:
            if name not in entries or tuple(getattr(entries[name], "shape", ())) not in shapes:
                raise ValueError(f"the optimiser's {index}.{name} is missing or has another shape than its parameter")
