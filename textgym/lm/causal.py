"""Load and check causal LMs, and use one as a reference, decoded with a cache."""

from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.checks import Bools, check_number, first_line
from textgym.codecs.sources import encodes_prompts
from textgym.files import check_files, read_json
from textgym.lm.backbone import is_peft, max_tokens
from textgym.lm.checked import choose_backbone
from textgym.lm.decoder import Decoder
from textgym.lm.encdec import refuse_encoder_decoder
from textgym.lm.reference import Observation
from textgym.rows import local_only

if TYPE_CHECKING:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        PreTrainedModel,
    )

    Loader = type[AutoModelForCausalLM | AutoModelForSeq2SeqLM | AutoModelForSequenceClassification]

_ON_CPU = 2**30  # bytes of keys and values
_LOG = logging.getLogger(__name__)
_LAYERS = ("layer", "layers")  # how the names of settings that count layers end


def load_weights(loader: Loader, name: str | Path, what: str, **options: object) -> tuple[PreTrainedModel, set[str]]:
    """Load a model from safetensors only, in float32. Says nothing on the standard error.

    Args:
        loader: a class of transformers, such as AutoModelForCausalLM.
        name: a folder in Hugging Face layout, or a hub id.
        what: the beginning of an error's message, such as "model='m': no causal LM".
        options: for `from_pretrained`; "dtype" asks for another precision.
    Returns: the model, and the names of the weights that its files lack.
    Raises: ValueError if no such model can be loaded: it gives the cause.
    """
    _LOG.info("loading a model from %s", name)
    from transformers.utils import logging as library

    library.disable_progress_bar()
    verbosity = library.get_verbosity()
    library.set_verbosity_error()  # the report of missing weights is for the caller to give
    try:
        _check_folder(Path(name))
        loaded = loader.from_pretrained(
            str(name),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=local_only(name),
            output_loading_info=True,
            **{"dtype": torch.float32, **options},
        )
    except ImportError:
        raise
    except Exception as error:  # a damaged file can lead to any type
        cause = first_line(error) or type(error).__name__
        raise ValueError(f"{what} with safetensors weights there ({cause})") from error
    finally:
        library.set_verbosity(verbosity)
    model, report = cast("tuple[PreTrainedModel, dict[str, list[str]]]", loaded)
    return model, set(report["missing_keys"])


def _check_folder(folder: Path) -> None:
    """Check a folder before its layers are made: a wrong number of them could take for ever. A hub id passes."""
    from safetensors import safe_open

    if not folder.is_dir():
        if folder.is_absolute():
            raise ValueError("there is no such folder")
        return
    check_files(folder)
    tensors = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            tensors += len(file.keys())
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    for key, value in config.items():
        counts = key.endswith(_LAYERS) and key != "max_window_layers"  # which makes none: Qwen2 has 28 by default
        if counts and isinstance(value, int) and tensors and value > tensors:
            raise ValueError(f"{folder / 'config.json'}: {key}={value!r:.80}; its weights are {tensors} tensors")


_COLDEST = 1e-6  # temperature
FORBIDDEN = -1e9  # Added to the logits of tokens that are not allowed; finite, so that 0 * logit stays 0.


def load_causal_lm(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal LM or an encoder-decoder, in evaluation mode.

    Args:
        name: a folder in Hugging Face layout, or a hub id; that of a PEFT adapter gives its base with the adapter, and
            the adapter alone can be trained.
        dtype: of its weights, but for those of an adapter.
    Raises: ValueError if no such model can be loaded: it names the argument and the cause.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    loader = AutoModelForSeq2SeqLM if encodes_prompts(name) else AutoModelForCausalLM
    model, missing = load_weights(loader, name, f"model={str(name)!r}: no causal LM", dtype=dtype)
    kinds = model.config.architectures or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(f"model={str(name)!r}: no causal LM but a {kinds[0]}; its head for scores would be lost")
    adapters = getattr(model, "peft_config", None)
    if adapters:  # transformers has frozen them
        return load_adapter(name, next(iter(adapters.values())).base_model_name_or_path, dtype)
    if missing:
        raise ValueError(f"model={str(name)!r}: its weights lack {min(missing)!r:.80}")
    model.eval()
    return model


def stored_precision(folder: str | Path) -> torch.dtype:
    """Return the precision, float32 or bfloat16, in which weights are loaded from a folder without being copied.

    An adapter's file does not tell that of the model under it: float32.
    """
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    for path in Path(folder).glob("*.safetensors"):
        with contextlib.suppress(SafetensorError, OSError), safe_open(path, "numpy") as file:
            names = file.keys()
            found |= {file.get_slice(name).get_dtype() for name in names}
    is_adapter = (Path(folder) / "adapter_config.json").is_file()
    return torch.bfloat16 if found == {"BF16"} and not is_adapter else torch.float32


def load_adapter(
    name: str | Path, base: str | Path | PreTrainedModel, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a PEFT adapter, which can be trained, over a causal LM or the one at `base`; in evaluation mode.

    What is under the adapter cannot be trained.
    """
    from peft import PeftModel

    model = load_causal_lm(base, dtype) if isinstance(base, str | Path) else base
    refuse_encoder_decoder(model, f"model={str(name)!r}: a PEFT adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an older name
        adapted = PeftModel.from_pretrained(model, str(name), is_trainable=True)
    return cast("PreTrainedModel", adapted.eval())


_shared: WeakValueDictionary[tuple[object, ...], PreTrainedModel] = WeakValueDictionary()


def shared_causal_lm(name: str | Path, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the causal LM of a name on a device: one object for all who ask for it, as long as one of them holds it.

    So nobody may change it. A folder whose files have changed is loaded again. Args, Raises: see `load_causal_lm`.
    """
    folder, files = Path(name), []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".safetensors", ".json"):
            about = path.stat()
            files.append((path.name, about.st_ino, about.st_size, about.st_mtime_ns))
    key = (str(folder.resolve() if files else name), device, dtype, *files)
    model = _shared.get(key)
    if model is None:
        model = load_causal_lm(name, dtype).to(device)  # type: ignore[arg-type]
        _shared[key] = model
    return model


def check_adapter(model: PreTrainedModel) -> None:
    """Raise ValueError for a PEFT model that could not be loaded again after it was saved."""
    if not is_peft(model):
        return
    refuse_encoder_decoder(model.get_base_model(), "model: a PEFT adapter")  # type: ignore[operator]
    names = list(model.peft_config)
    if names != ["default"]:
        raise ValueError(f"model: it has the adapters {names}; allowed is one, named 'default'")
    config = model.peft_config["default"]
    if config.is_prompt_learning:
        raise ValueError(
            f"model: its adapter is of the type {config.peft_type.value}, which learns virtual tokens; "
            "allowed are those that change weights, such as LoRA"
        )


def check_positions(model: PreTrainedModel, prompt_tokens: int, new_tokens: int = 0) -> None:
    """Raise ValueError if a state of so many tokens is longer than the model, or LED's decoder, can read."""
    limit, tokens = max_tokens(model), prompt_tokens + new_tokens
    if limit is not None and tokens > limit:
        raise ValueError(
            f"model: it reads at most {limit} tokens but a state has up to {tokens}; "
            "lower max_prompt_tokens or max_new_tokens"
        )
    limit = getattr(model.config, "max_decoder_position_embeddings", None)
    if limit is not None and new_tokens >= limit:
        raise ValueError(
            f"model: its decoder reads at most {limit} tokens but its start token and a completion have up to "
            f"{new_tokens + 1}; lower max_new_tokens"
        )


def choose_device(name: str) -> torch.device:
    """Return a device; "auto" is CUDA where there is one, then MPS, then the CPU.

    Raises: ValueError if this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r}: not on this machine; allowed: 'auto', 'cpu', 'cuda', ...") from error
    return device


def logit_bias(allowed: Bools, vocab_size: int, device: torch.device, temperature: float = 1.0) -> Tensor:
    """Return (V,) float32: 0 at allowed tokens, `FORBIDDEN` elsewhere.

    Args: temperature: what logits are divided by before it is added.
    Raises: ValueError if the model's logits are not as many as the task's actions, or below 1e-6, where the quotients
        could outweigh it.
    """
    check_number("temperature", temperature, _COLDEST)
    if len(allowed) != vocab_size:
        advice = f"and vocab_size={vocab_size} if its embedding is padded"
        if allowed[vocab_size:].any():  # `load_vocabulary` takes no vocab_size below that of what can be written
            advice = f"or the model after resize_token_embeddings({len(allowed)})"
        raise ValueError(
            f"model: it has {vocab_size} logits but the task has {len(allowed)} actions; "
            f"pass the tokenizer of the model, {advice}"
        )
    return torch.where(torch.tensor(allowed), 0.0, FORBIDDEN).to(device)


def rows_at_once(model: PreTrainedModel, device: torch.device, tokens: int) -> int:
    """Return of how many rows of so many tokens keys and values fit what they may take on a device.

    That is an eighth of the memory that a GPU has, free or not, and 1 GiB elsewhere. Plain attention is assumed.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    numbers = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * size
    row = tokens * numbers * model.get_input_embeddings().get_parameter("weight").element_size()
    room = torch.cuda.get_device_properties(device).total_memory // 8 if device.type == "cuda" else _ON_CPU
    return int(room // row)


class CausalLM:
    """`Reference` over a causal LM or encoder-decoder; consecutive observations share a key-value cache.

    Args:
        model: a Hugging Face causal LM or encoder-decoder.
        allowed: (V,) bool; other tokens get probability 0.
        temperature: >= 1e-6, divides the logits.
        device: "auto" or a torch device.
        tokens: the longest row that it will read, see `choose_backbone`.
        prompt_end: the token that ends every prompt, for an encoder-decoder, see `textgym.task.prompt_end`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        allowed: Bools,
        temperature: float = 1.0,
        device: str = "auto",
        tokens: int | None = None,
        prompt_end: int | None = None,
    ) -> None:
        where = choose_device(device)
        self.model = model.to(where).eval()  # type: ignore[arg-type]
        self.temperature = temperature
        self._allowed, self._device, self._tokens = allowed, where, tokens
        self._backbone = choose_backbone(self.model, tokens=tokens)
        self._backbone.prompt_end = prompt_end
        self.hidden_size = self._backbone.hidden_size
        self._bias = logit_bias(allowed, self._backbone.vocab_size, where, temperature)
        self._decoder = Decoder(self._backbone, where)

    def copy(self) -> CausalLM:
        """Return the same model with a key-value cache of its own."""
        own, end = (self.model, self._allowed, self.temperature), self._backbone.prompt_end
        return CausalLM(*own, str(self._device), self._tokens, end)

    def rows_at_once(self, tokens: int) -> int:
        """See the function."""
        return rows_at_once(self.model, self._device, tokens)

    def forget(self) -> None:
        """Empty the key-value cache."""
        self._decoder.reset()

    @torch.inference_mode()
    def log_probs(self, observation: Observation) -> NDArray[np.float32]:
        """See `Reference.log_probs`; (B, V) float32."""
        logits, _ = self._backbone.read_out(self._decoder.advance(observation))
        scaled = logits / self.temperature + self._bias
        result: NDArray[np.float32] = torch.log_softmax(scaled.float(), -1).cpu().numpy()
        return result

    @torch.inference_mode()
    def features(self, observation: Observation) -> NDArray[np.float32]:
        """Return the last hidden states (B, H) float32 at each row's end; shares the forward with `log_probs`."""
        _, hidden = self._backbone.read_out(self._decoder.advance(observation))
        result: NDArray[np.float32] = hidden.float().cpu().numpy().copy()
        return result
