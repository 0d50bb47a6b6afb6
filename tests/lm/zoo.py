"""Tiny random models of many architectures, each made from its own configuration class."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

VOCAB = 96
# What a configuration knows of these is set; windows are shorter than the rows of the tests.
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "sliding_window": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "tie_word_embeddings": False,
}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
_DELTA = {
    "initializer_range": 0.15,  # its recurrence amplifies rounding
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "bert-bidirectional": {"is_decoder": False},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "falcon-alibi": {"alibi": True, "new_decoder_architecture": False},
    "falcon-new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
        "intermediate_size": [48] * 5,
        "activation_sparsity_pattern": [0.0] * 5,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
    },
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "granitemoehybrid": {
        **_MAMBA2,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
    },
    "hrm_text": {"initializer_range": 0.1},  # its loops amplify rounding
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"attention_chunk_size": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minicpm3": _LATENT,
    "phimoe": {"router_jitter_noise": 0.0},  # else experts are dropped at a threshold, where rounding decides
    "qwen2_moe": {"shared_expert_intermediate_size": 16},
    "qwen3_5_text": _DELTA,
    "qwen3_next": {**_DELTA, "shared_expert_intermediate_size": 16},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 4, "lru_width": 32},
    "rembert": {"initializer_range": 0.1},  # its widest layer has 1,664 entries
    "rwkv": {"rescale_every": 0},
    "rwkv-rescaling": {"rescale_every": 1},
    "zamba": {"layer_types": ["mamba", "hybrid"], "n_mamba_heads": 2, "mamba_d_state": 4},
    "zamba2": {
        "layer_types": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_d_state": 8,
        "chunk_size": 8,
        "num_mem_blocks": 1,
    },
}

# By which way each of them is run; "refused" are those that no way is right with.
WAYS = {
    "with a cache": """afmoe apertus arcee bamba bert bert-generation big_bird biogpt bitnet bloom codegen cohere
        cohere2 cohere2_moe ctrl cwm deepseek_v2 deepseek_v3 diffllama doge electra ernie ernie4_5 ernie4_5_moe exaone4
        exaone_moe falcon falcon-alibi falcon-new falcon_h1 flex_olmo gemma gemma2 gemma3_text gemma3n_text glm glm4
        glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoehybrid
        granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe jamba jetmoe lfm2 llama llama4_text mamba2
        megatron-bert minicpm3 minimax_m2 ministral ministral3 mistral mixtral modernbert-decoder mpt nanochat
        nemotron olmo olmo2 olmo3 olmo_hybrid olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_text
        qwen3_moe qwen3_next rembert roformer seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm zamba""",
    "with a state": "falcon_mamba mamba",
    "without a cache": """bart bigbird_pegasus blenderbot blenderbot-small camembert data2vec-text marian mbart minimax
        moshi mvp openai-gpt pegasus plbart recurrent_gemma roberta roberta-prelayernorm rwkv trocr whisper
        xlm-roberta xlm-roberta-xl zamba2""",
    "refused": "bert-bidirectional prophetnet rwkv-rescaling xlnet",
}
ZOO = {kind: way for way, kinds in WAYS.items() for kind in kinds.split()}


_PAIRED = """bart bigbird_pegasus blenderbot blenderbot-small led longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus
    pegasus_x plbart t5 umt5"""
PAIRS = dict.fromkeys(_PAIRED.split(), True) | dict.fromkeys(("fsmt", "prophetnet", "switch_transformers"), False)
"""Encoder-decoders, and whether they are run."""
_PAIR = {
    "d_kv": 8,
    "d_ff": 48,
    "num_decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "init_std": 0.3,
    "initializer_factor": 2.0,
    "is_decoder": False,
    "decoder_start_token_id": 2,
    "tie_word_embeddings": True,
}


def zoo_pair(kind: str, seed: int = 0) -> Any:
    """A random encoder-decoder; see `zoo_model`."""
    return _make(AutoModelForSeq2SeqLM, kind, seed, _PAIR)


def zoo_model(kind: str, seed: int = 0, **options: Any) -> Any:
    """A random model in evaluation mode, mostly of about 30,000 parameters.

    Args:
        kind: of `ZOO`, the `model_type` of a configuration; some have variants.
        options: further settings of the configuration.
    """
    return _make(AutoModelForCausalLM, kind, seed, options)


def zoo_classifier(kind: str, seed: int = 0, **options: Any) -> Any:
    """A random reward model; see `zoo_model`. Architectures that are no decoders can be named too."""
    return _make(AutoModelForSequenceClassification, kind, seed, {"is_decoder": False, "num_labels": 1, **options})


def _make(factory: Any, kind: str, seed: int, options: dict[str, Any]) -> Any:
    variants = ("-alibi", "-new", "-bidirectional", "-rescaling")
    name = next((kind.removesuffix(end) for end in variants if kind.endswith(end)), kind)
    known = AutoConfig.for_model(name).to_dict()
    sizes = {key: size for key, size in _SIZES.items() if key in known}
    if factory is AutoModelForSeq2SeqLM:
        options = {key: option for key, option in options.items() if key in known or key.startswith("decoder_start")}
    config = AutoConfig.for_model(name, **{**sizes, **_OPTIONS.get(kind, {}), **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory.from_config(config, dtype=torch.float32).eval()
