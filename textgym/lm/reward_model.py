"""Use a trained reward model as a reward."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from textgym.checks import Floats, JsonObject, TextGymWarning, check_choice, check_count, check_number
from textgym.files import read_json
from textgym.rewards.base import NamedReward
from textgym.rewards.calling import check_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from textgym.vocab import Vocabulary


def find_reward_model(name: str | Path, tokenizer: bool = True) -> str:
    """Return the folder of that name, checked and absolute, or else the name, which is then a hub id.

    Raises: TypeError if it is not a name; ValueError for a folder without a reward model.
    """
    if not isinstance(name, str | Path) or not name:
        raise TypeError(f"model={name!r:.80}: a folder or a hub id is allowed, or a list of them")
    folder = Path(name)
    if not folder.is_dir():
        return str(name)
    check_reward_folder(folder, tokenizer)
    read_offset(folder)
    return str(folder.resolve())


def check_installed() -> None:
    """Raise ModuleNotFoundError without the packages that a reward model needs."""
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(
                f'a reward model needs {module}, which is not installed: pip install "textgym[lm]"', name=module
            )


def check_reward_folder(folder: Path, tokenizer: bool = True) -> None:
    """Check that a folder holds a sequence classifier with one label, safetensors weights and a tokenizer.

    Raises: ValueError that names the folder and what it lacks.
    """
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        hint = f" Did you mean {str(inner)!r}?" if (inner / "config.json").is_file() else ""
        raise ValueError(f"model={str(folder)!r}: no reward model there: it has no config.json.{hint}")
    config = read_json(folder / "config.json")
    kinds = config.get("architectures") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"{folder / 'config.json'}: architectures={kinds!r:.80}; a list of names is allowed")
    if kinds and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"model={str(folder)!r}: no reward model but a {kinds[0]!r:.60}; "
            "allowed is a sequence classifier with one label"
        )
    names = config.get("id2label") or {"0": "", "1": ""}  # Hugging Face writes them unless there are two
    if not isinstance(names, dict):
        raise ValueError(f"{folder / 'config.json'}: id2label={names!r:.80}; a JSON object is allowed")
    labels = len(names)
    if labels != 1:
        raise ValueError(f"model={str(folder)!r}: num_labels={labels}; a reward model has 1 (one score)")
    for pattern in ("*.safetensors", *(("tokenizer.json",) if tokenizer else ())):
        if not any(folder.glob(pattern)):
            raise ValueError(
                f"model={str(folder)!r}: no {pattern} in that folder; save_pretrained of the model and of its "
                "fast tokenizer write both files"
            )


def read_offset(folder: Path) -> float:
    """Return the model's mean score on reference samples, reward units, from its reward.json; 0 without one.

    Raises: ValueError if the file holds no finite number under "offset".
    """
    path = folder / "reward.json"
    if not path.is_file():
        return 0.0
    return check_number(f"{path}: offset", read_json(path).get("offset", 0.0))


Combine = Literal["mean", "min", "mean_minus_std"]
Precision = Literal["float32", "bfloat16", "float16"]
Pair = tuple[str, str, bool]  # prompt, completion, whether it came to its end


class Member(NamedTuple):
    """A loaded model of the ensemble, its vocabulary, its longest input in tokens (None: no limit), its offset."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    max_length: int | None
    offset: float


class RewardModel(NamedReward):
    """Pays the scores of Hugging Face sequence classifiers with one label for prompt and completion.

    A model whose tokenizer has a chat template reads the two messages through `apply_chat_template`; any other
    reads the prompt, the completion and the tokenizer's EOS token. See `textgym.lm.scoring.encode_exchange`.

    Distinct texts that are not in the cache are sorted by length and read in as few forward passes as `batch`
    allows. A score depends on its own text alone, up to rounding (1e-5).

    A folder's files are checked at once, its model is loaded at the first score; a hub id is loaded at once, and so
    are models in a process that receives the reward. A folder's reward.json may hold {"offset": ...}, the mean
    score of that model on reference samples.

    Args:
        model: a folder in Hugging Face layout or a hub id; several make an ensemble.
        combine: of the members' scores: "mean", "min", or "mean_minus_std", the mean less k population standard
            deviations.
        k: >= 0.
        stop_ids: a completion counts as ended where its `completion_ids` end in one of them; the model then reads an
            end in its own vocabulary, and none elsewhere. None: every completion counts as ended.
        batch: rows of a forward pass.
        cache: how many of the latest scores are kept; 0 keeps none.
        max_length: tokens a model reads, None for as many as it can; `textgym.lm.scoring.encode_pair` says which
            tokens of longer texts are left out.
        device: "auto" or a torch device.
        centre: subtract the offset of every member.
        tokenizer: a folder or a hub id; None: that of each model.
        chat: the chat template, see `load_vocabulary`: False reads without one; None: that of the tokenizer.
        precision: of the weights; below float32 a score also depends, within rounding, on the batch it is computed in.

    Attributes:
        cut: how many texts were too long and lost tokens; the first one warns.
    Raises: ValueError for a bad argument or a folder without a reward model; ModuleNotFoundError without torch
        and transformers.
    Source: Coste et al. (2023), arXiv:2310.02743 (which subtracts k variances, not deviations).
    """

    name = "reward_model"

    def __init__(
        self,
        model: str | Path | Sequence[str | Path],
        combine: Combine = "mean",
        k: float = 1.0,
        stop_ids: Sequence[int] | None = None,
        batch: int = 128,
        cache: int = 10_000,
        max_length: int | None = None,
        device: str = "auto",
        centre: bool = True,
        tokenizer: str | Path | None = None,
        chat: bool | str | None = None,
        precision: Precision = "float32",
    ) -> None:
        check_choice("precision", precision, get_args(Precision))
        check_choice("combine", combine, get_args(Combine))
        if stop_ids is not None and not _are_ids(stop_ids):
            raise ValueError(f"stop_ids={stop_ids!r:.80}: None or a list of token ids is allowed")
        check_installed()
        names = [model] if isinstance(model, str) or not isinstance(model, Sequence) else list(model)
        if not names:
            raise ValueError("model=[]: at least one folder or hub id is allowed")
        self.combine: Combine = combine
        self.k = check_number("k", k, 0)
        self.stop_ids = None if stop_ids is None else frozenset(map(int, stop_ids))
        self.batch = check_count("batch", batch)
        self.cache = check_count("cache", cache, 0)
        self.max_length = None if max_length is None else check_count("max_length", max_length)
        self.device = device
        self.centre = centre
        self.tokenizer, self.chat, self.precision = tokenizer, chat, precision
        self.cut = 0
        self._models = [find_reward_model(name, tokenizer is None) for name in names]
        self._members: list[Member] | None = None
        self._scores: OrderedDict[str, float] = OrderedDict()
        if not all(Path(name).is_dir() for name in self._models):
            self._load()

    def __call__(self, prompts: list[str], completions: list[str], **columns: Sequence[object]) -> list[float]:
        """Return the score of every completion.

        Raises: ValueError for a prompt or completion that the model's tokenizer cannot encode, without the
            column `completion_ids` where `stop_ids` are given, or for batches of different sizes.
        """
        ids = columns.get("completion_ids")
        check_batch(prompts, completions, {} if ids is None else {"completion_ids": ids})
        ended = self._ended(len(completions), ids)
        pairs = list(zip(prompts, completions, ended, strict=True))
        keys = [_key(pair) for pair in pairs]
        known = {key: self._scores[key] for key in keys if key in self._scores}
        fresh = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        if fresh:
            known.update(zip(fresh, self._combined(list(fresh.values())), strict=True))
        self._remember(keys, known)
        return [known[key] for key in keys]

    def state_dict(self) -> JsonObject:
        """Return the cache and the count, as JSON values.

        A score's last bits depend on the batch it was computed in, so a resumed run needs exactly these scores.
        """
        return {"cut": self.cut, "scores": list(map(list, self._scores.items()))}

    def load_state_dict(self, state: JsonObject) -> None:
        """Go back to a state that `state_dict` returned."""
        self.cut = int(state["cut"])
        self._scores = OrderedDict((str(key), float(score)) for key, score in state["scores"])

    def __copy__(self) -> RewardModel:
        """Make a reward with a cache of its own over the same models, which never change."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, _scores=self._scores.copy())
        return other

    def __deepcopy__(self, memo: dict[int, object]) -> RewardModel:
        return copy.copy(self)

    def __getstate__(self) -> JsonObject:
        return {**self.__dict__, "_members": None}

    def __setstate__(self, state: JsonObject) -> None:
        # Loading belongs to the start of a process; at the first score it would count against a time limit.
        self.__dict__.update(state)
        self._load()

    def _ended(self, count: int, completion_ids: Sequence[Any] | None) -> list[bool]:
        stops = self.stop_ids
        if stops is None:
            return [True] * count
        if completion_ids is None:
            raise ValueError("stop_ids: they need the column 'completion_ids'; allowed without it: None")
        return [len(ids) > 0 and ids[-1] in stops for ids in completion_ids]

    def _remember(self, keys: list[str], known: dict[str, float]) -> None:
        for key in keys:
            if math.isfinite(known[key]):
                self._scores[key] = known[key]
                self._scores.move_to_end(key)
        while len(self._scores) > self.cache:
            self._scores.popitem(last=False)

    def _combined(self, pairs: list[Pair]) -> list[float]:
        """Return the ensemble's scores; every member reads every pair."""
        cut: set[int] = set()  # a text counts once, whichever members cut it
        scores = np.stack([self._score(member, pairs, cut) for member in self._load()])  # (M, N)
        combined = scores.min(0) if self.combine == "min" else scores.mean(0)
        if self.combine == "mean_minus_std":
            combined -= self.k * scores.std(0)
        return [float(score) for score in combined]

    def _score(self, member: Member, pairs: list[Pair], cut: set[int]) -> Floats:
        import torch

        from textgym.lm.scoring import encode_exchange, first_tokens, pad_right, sequence_scores

        vocabulary = member.vocabulary
        encoded = [encode_exchange(vocabulary, *pair, member.max_length) for pair in pairs]
        own = {index for index, row in enumerate(encoded) if row.cut} - cut
        self._report_cut(len(own), member.max_length)
        cut |= own
        by_length = sorted(range(len(pairs)), key=lambda index: len(encoded[index].ids))
        scores = np.empty(len(pairs))
        device = next(member.model.parameters()).device
        for start in range(0, len(by_length), self.batch):
            chunk = by_length[start : start + self.batch]
            ids, lengths = pad_right([encoded[index].ids for index in chunk], vocabulary.pad_id)
            firsts = first_tokens([encoded[index] for index in chunk])
            with torch.inference_mode():
                part = sequence_scores(member.model, ids.to(device), lengths.to(device), firsts.to(device))
            scores[chunk] = part.cpu().numpy()
        return scores - member.offset

    def _report_cut(self, count: int, max_length: int | None) -> None:
        if count and not self.cut:
            warnings.warn(
                f"reward {self.name!r}: a prompt and its completion have more than {max_length} tokens; what is "
                "too long is cut (first the prompt, from its start). RewardModel.cut counts further texts silently",
                TextGymWarning,
                stacklevel=5,
            )
        self.cut += count

    def _load(self) -> list[Member]:
        if self._members is None:
            self._members = [self._load_member(name) for name in self._models]
        return self._members

    def _load_member(self, name: str) -> Member:
        import torch

        from textgym.lm.backbone import max_tokens
        from textgym.lm.causal import choose_device
        from textgym.lm.checked import refuse_changing
        from textgym.lm.scoring import load_reward_model

        model, vocabulary = load_reward_model(name, self.tokenizer, self.chat, getattr(torch, self.precision))
        limit = max_tokens(model)
        if self.max_length is not None and limit is not None and self.max_length > limit:
            raise ValueError(f"max_length={self.max_length}: the model {name!r} reads at most {limit} tokens")
        refuse_changing(model, self.max_length or limit or 0)
        offset = read_offset(Path(name)) if self.centre else 0.0
        model.to(choose_device(self.device))  # type: ignore[arg-type]
        return Member(model, vocabulary, self.max_length or limit, offset)


def _key(pair: Pair) -> str:
    # A digest, so that memory is bounded however long the texts are.
    return hashlib.blake2b(json.dumps(pair).encode(), digest_size=16).hexdigest()


def _are_ids(values: object) -> bool:
    if isinstance(values, str) or not isinstance(values, Collection):
        return False
    return all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in values)
