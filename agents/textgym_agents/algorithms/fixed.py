"""Agents that do not learn: a task's reference policy, a uniformly random one, and any causal LM."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from textgym.checks import check_batch, first_line
from textgym.files import read_json
from textgym.lm.reference import Reference, UniformReference
from textgym.registry import Factory
from textgym.task import Task, load_reference, make_reference
from textgym.vector import TokenVectorEnv
from textgym_agents.config import check_types, require
from textgym_agents.protocol import Agent, Callback, DrawingAgent, Observation, as_agent
from textgym_agents.saving import Saved, read_saved, write_saved

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class FixedConfig:
    """Settings of an agent that does not learn. Raises: ValueError for a seed that is not an integer or is below 0."""

    seed: int = 0
    """Seed of the sampled actions."""

    def __post_init__(self) -> None:
        check_types(self)
        require("seed", self.seed, self.seed >= 0, "an integer >= 0")


class NonLearner(Agent):
    """An agent that does not learn; its config is all that is saved."""

    task: Task
    config: DataclassInstance
    config_type: ClassVar[type[Any]]
    learns = False
    resumes = True

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """Do nothing: there is nothing to learn."""

    def save(self, path: str | Path) -> None:
        """See `Agent.save`."""
        write_saved(path, self.name, self.config, self.task)

    @classmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> Self:
        """See `Agent.load`."""
        task = env.unwrapped.task
        return read_saved(path, cls.name, lambda saved: cls._restored(saved, task), task, elsewhere=None)

    @classmethod
    def _restored(cls, saved: Saved, task: Task) -> Self:
        make: Factory = cls
        made: Self = make(task, cls.config_type(**saved.config))
        return made


class _FixedAgent(NonLearner, DrawingAgent):
    """An agent that acts by a reference policy.

    Args:
        task: whose policy.
    """

    config: FixedConfig
    config_type = FixedConfig

    def __init__(self, task: Task, config: FixedConfig | None = None) -> None:
        self.task = task
        self.config = config or FixedConfig()
        self._policy = self._make_policy(task)

    @abstractmethod
    def _make_policy(self, task: Task) -> Reference:
        """Return the policy."""

    def log_probs(self, observation: Observation) -> NDArray[np.floating]:
        """See `Agent.log_probs`."""
        check_batch(observation)
        return self._policy.log_probs(observation)


class ReferenceAgent(_FixedAgent):
    """The task's reference policy, whose optimality is 0.

    Raises: ValueError for a reference that cannot be loaded.
    """

    name = "reference"

    def _make_policy(self, task: Task) -> Reference:
        return make_reference(task)


class RandomAgent(_FixedAgent):
    """A uniformly random policy over the allowed tokens.

    Raises: ValueError for a vocabulary without an allowed token.
    """

    name = "random"

    def _make_policy(self, task: Task) -> Reference:
        return UniformReference(task.vocabulary.allowed)


class Pretrained(_FixedAgent):
    """A causal LM or PEFT adapter, used without training and compared with the task's reference.

    Raises: ValueError if the model cannot be loaded, or has another tokenizer than the task.
    """

    model: ClassVar[str]
    """Folder or hub id of the model."""

    def _make_policy(self, task: Task) -> Reference:
        check_tokenizer(self.model, task, f"agent 'hf:{self.model}'")
        return load_reference(self.model, task)


@cache
def pretrained(name: str) -> type[Pretrained]:
    """Return the class of agents `hf:FOLDER_OR_ID`. Raises: ValueError without a folder or id."""
    model = name.removeprefix("hf:")
    if not model:
        raise ValueError(f"agent {name!r}: the model is missing, as in hf:models/mine or hf:gpt2")
    if model.startswith("~/"):
        model = str(Path(model).expanduser())
    return type("Pretrained", (Pretrained,), {"name": name, "model": model, "__module__": __name__})


def check_tokenizer(model: str, task: Task, who: str) -> None:
    """Raise ValueError if a model comes with a tokenizer whose ids mean other tokens than the task's.

    Of a model without any, the number of logits alone is compared, later. Args: who: begins the message.
    """
    from textgym.codecs.sources import find_source

    tokenizer = _tokenizer_of(model, who)
    if tokenizer is None:
        return
    theirs, own = find_source(tokenizer).codec, task.vocabulary.codec
    differing = [i for i in range(max(theirs.size, own.size)) if theirs.token(i) != own.token(i)]
    if differing:
        place = differing[0]
        raise ValueError(
            f"{who}: its tokenizer is another than that of task {task.name!r}: {len(differing)} ids "
            f"differ, first {place}: {theirs.token(place)!r}, in the task {own.token(place)!r}; allowed is a model "
            f"with the task's tokenizer, or a task with the model's (Text-v0 --env tokenizer={model})"
        )


def _tokenizer_of(model: str, who: str) -> object:
    """Return what `find_source` reads a model's tokenizer from, that of an adapter's base where it has none itself.

    Returns: None for a folder without a tokenizer.
    Raises: ValueError for what is neither a folder nor at hand, nor on the hub.
    """
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    from textgym.rows import local_only

    folder = Path(model)
    if (folder / "tokenizer.json").is_file():
        return folder
    if (folder / "adapter_config.json").is_file():
        return _tokenizer_of(str(read_json(folder / "adapter_config.json").get("base_model_name_or_path")), who)
    if folder.exists() and not [*folder.glob("*vocab*"), *folder.glob("*.model")]:
        return None
    try:
        local = local_only(model)
        cached_file(model, "config.json", _raise_exceptions_for_missing_entries=False, local_files_only=local)
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError) as error:
        raise ValueError(f"{who}: no folder, and no model with a tokenizer ({first_line(error)})") from error


def reference_of(agent: object, task: Task) -> Reference:
    """Return what an agent's KL is measured from: a reference of its own where it has one, else the task's."""
    own = as_agent(agent).own_reference()
    return make_reference(task) if own is None else own
