"""What is verified before a converted model is called finished; failing is a `CheckError`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from . import pretrained
from .errors import CheckError
from .training.packing import Rows

PROBE, STEPS = 128, 32  # tokens looked at, and how many of them are read one by one
# Largest logit difference allowed, by dtype: rounding of two orders of summation.
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


def probe(rows: Rows, device: torch.device) -> Tensor:
    """[1, up to 128] held-out token ids."""
    return rows.batch([0])["input_ids"][:, :PROBE].to(device)


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """[1, T, V] float32 of one full forward pass."""
    model.eval()
    return model(input_ids=ids, use_cache=False).logits.float()


def merged(model: PreTrainedModel, ids: Tensor, expected: Tensor) -> dict[str, Any]:
    """The merged model against base and adapter apart."""
    return _compare("merged equals adapter", logits(model, ids), expected, model.dtype)


@torch.no_grad()
def cached(model: PreTrainedModel, rows: Rows, device: torch.device) -> dict[str, Any]:
    """Decoding from the cache, prompt first, then token by token, against one full pass."""
    ids = probe(rows, device)
    own = getattr(model, "new_cache", None)  # of looped models
    cache = DynamicCache(config=model.config) if own is None else own()
    expected = logits(model, ids)  # first: it leaves training mode
    prompt = max(1, ids.shape[1] - STEPS)
    pieces = [ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)]
    steps = [model(input_ids=p, past_key_values=cache, use_cache=True).logits for p in pieces]
    got = torch.cat(steps, 1).float()
    return _compare("cached decoding equals full forward", got, expected, model.dtype)


def saved(model: PreTrainedModel, path: Path, rows: Rows, device: torch.device) -> dict[str, Any]:
    """The saved files, loaded again, against the model they came from."""
    ids = probe(rows, device)
    again = pretrained.load(path, device=device)
    return _compare("saved equals trained", logits(again, ids), logits(model, ids), model.dtype)


def mix_weights(path: Path) -> dict[str, list[float]]:
    """Learned mix weights by layer index, read from a saved model or adapter."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith("mix.weight"):
                    layer = name.split(".layers.")[1].split(".")[0]
                    found[layer] = tensors.get_tensor(name).float().tolist()
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _compare(name: str, got: Tensor, expected: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    value, limit = (got - expected).abs().max().item(), LIMITS[dtype]
    if not value <= limit:
        raise CheckError(
            f"check '{name}' failed: logits differ by {value:.3g}, more than the {limit:.3g} that "
            "rounding explains; the result was not written. Please report this with the recipe"
        )
    return {"name": name, "value": value, "limit": limit, "passed": True}
