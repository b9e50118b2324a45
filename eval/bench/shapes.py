"""What is measured: a model by name, or random weights of a known shape."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import linearize
from linearize import device as devices
from linearize import pretrained
from linearize.errors import UsageError, suggest

from .loading import load

# Fields of `LlamaConfig`.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "15m": {  # as stories15M
        "vocab_size": 32_000,
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "tie_word_embeddings": True,
    },
    "135m": {  # as SmolLM-135M
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
}
CONTEXT = 131_072  # positions that random weights are said to know


def random(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    layers: int | None = None,
    vocabulary: int | None = None,
) -> PreTrainedModel:
    """A Llama of random weights, of its own numbers of layers and tokens unless others are given.

    Raises `UsageError` for a name that is not in `SHAPES`.
    """
    if name not in SHAPES:
        raise UsageError(f"there is no shape '{name}'{suggest(name, SHAPES)}")
    torch.manual_seed(0)
    changes = {"num_hidden_layers": layers, "vocab_size": vocabulary}
    values = SHAPES[name] | {key: value for key, value in changes.items() if value is not None}
    config = LlamaConfig(**values, max_position_embeddings=CONTEXT)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def options(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds those that say which model; `default` tells what it is without them."""
    parser.add_argument("model", nargs="?", help=f"directory or name [{default}]")
    parser.add_argument("--model", dest="named", metavar="MODEL", help="the same")
    shapes = ", ".join(SHAPES)
    parser.add_argument("--shape", metavar="NAME", help=f"random weights instead: {shapes}")
    kinds = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="auto", choices=kinds, help="[auto]")


def chosen(
    asked: argparse.Namespace, device: torch.device, default: str | None = None
) -> tuple[PreTrainedModel, Any, str]:
    """(model, tokenizer or None, what it is called) that a command line asks for.

    - `default`: without a model and a shape, random weights of this one; None for the embedded
      model.

    Raises `UsageError` for a model and a shape at once, and what loading raises.
    """
    model = asked.model or asked.named
    if model and asked.shape:
        raise UsageError(f"the model {model} and --shape {asked.shape}: give one of the two")
    if not model and (shape := asked.shape or default):
        stored = torch.float32 if device.type == "cpu" else torch.bfloat16
        dtype = devices.dtype(asked.dtype, stored, device)
        return random(shape, device, dtype), None, f"{shape}, random weights"
    named = model or pretrained.EMBEDDED
    return *load(named, device, asked.dtype), named


def shared(base: PreTrainedModel) -> PreTrainedModel:
    """A copy with the same weights in memory, so that both fit where one does."""
    return copy.deepcopy(base, {id(x): x for x in (*base.parameters(), *base.buffers())})


def converted(base: PreTrainedModel) -> PreTrainedModel:
    """A copy with Liger attention, untrained: speed and memory do not depend on training."""
    return linearize.apply(shared(base), linearize.LigerSpec(mix="fixed"))


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that a pass reads: all but an embedding table that is only looked up."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    looked_up = 0 if head is None or head.weight is table.weight else table.weight.nbytes
    return sum(p.nbytes for p in model.parameters()) - looked_up
