"""Published configurations of real models, as far as they matter here: facts, no weights.

Each is `config.json` beside the weights on the hub under the name that stands above it, compared
with the same numbers in Lightning-AI/litgpt (`litgpt/config.py`) and, for Gemma 2, in
AI-Hypercomputer/maxtext (`hf_model_configs.py`, which relies on transformers' defaults for the
rest). That `parameters` comes out says that none of the sizes is wrong: it is what the model cards
and the headers of the weights give.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LLAMA_3_2 = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
# recipe -> (name on the hub, parameters, config.json)
PUBLISHED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "smollm2-135m": (
        "HuggingFaceTB/SmolLM2-135M",
        134_515_008,
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49_152,
            "max_position_embeddings": 8192,
            "rope_theta": 100_000,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        },
    ),
    "llama-3.2-1b": (
        "meta-llama/Llama-3.2-1B",
        1_235_814_400,
        {**_LLAMA_3_2, "hidden_size": 2048, "num_hidden_layers": 16, "head_dim": 64},
    ),
    "llama-3.2-3b": (
        "meta-llama/Llama-3.2-3B",
        3_212_749_824,
        {
            **_LLAMA_3_2,
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "head_dim": 128,
        },
    ),
    "gemma-2-2b": (
        "google/gemma-2-2b",
        2_614_341_888,
        {
            "model_type": "gemma2",
            "architectures": ["Gemma2ForCausalLM"],
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256_000,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "dtype": "float32",
        },
    ),
    "mistral-7b": (
        "mistralai/Mistral-7B-v0.1",
        7_241_732_096,
        {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32_000,
            "max_position_embeddings": 32_768,
            "sliding_window": 4096,
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        },
    ),
    "qwen2.5-7b": (
        "Qwen/Qwen2.5-7B",
        7_615_616_512,
        {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_064,
            "max_position_embeddings": 131_072,
            "sliding_window": 131_072,
            "use_sliding_window": False,
            "max_window_layers": 28,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        },
    ),
    "llama-3-8b": (
        "meta-llama/Meta-Llama-3-8B",
        8_030_261_248,
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
            "max_position_embeddings": 8192,
            "rope_theta": 500_000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        },
    ),
    "qwen3-8b": (
        "Qwen/Qwen3-8B",
        8_190_735_360,
        {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 40_960,
            "sliding_window": None,
            "use_sliding_window": False,
            "max_window_layers": 36,
            "rope_theta": 1_000_000,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        },
    ),
}


def write_config(name: str, directory: Path) -> Path:
    """`directory` with the config.json of a recipe's model, and nothing else."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(PUBLISHED[name][2]))
    return directory
