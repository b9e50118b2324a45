"""Converted models on disk: load what was saved, whole or as an adapter; merge adapters.

An adapter directory holds what peft writes and the converted `config.json`, whose provenance says
which base it belongs to and what its content hash was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from . import pretrained
from .errors import InputError
from .liger.modeling import apply, spec_of
from .output import OutputDirectory
from .recurrent_depth.retrofit import retrofit
from .recurrent_depth.spec import LoopSpec

ADAPTER = "adapter_config.json"


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A converted model, whole or as adapter, or any other causal LM, ready to generate.

    - `path`: directory, hub id or "embedded". An adapter is merged into its base in memory.
    - `dtype`: "auto" keeps the checkpoint's.

    Raises `InputError` if something is missing, damaged or does not belong together.
    """
    where = pretrained.locate(str(path), trust_remote_code=trust_remote_code)
    if (where / ADAPTER).exists():
        model = merge_adapter(_with_adapter(where, trust_remote_code))
        stored = model.config.linearize["provenance"]["dtype"]
        wanted = stored if dtype == "auto" else dtype
        return cast(model, wanted).to(device)
    return pretrained.load(where, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write the whole model that an adapter directory describes. Returns `out`.

    Merges in float32 and rounds once. Raises `InputError`, `OutputError` or `UsageError`.
    """
    where = Path(adapter)
    if not (where / ADAPTER).exists():
        raise InputError(
            f"{where} holds no adapter (no {ADAPTER}); it is made by "
            "`linearize convert ... --adapter-only`, and `linearize finetune` likewise"
        )
    with OutputDirectory(out, overwrite=overwrite, sources=(where,)) as output:
        model = load(where, trust_remote_code=trust_remote_code)
        model.save_pretrained(output.path)
        pretrained.tokenizer(where).save_pretrained(output.path)
        for name in ("recipe.yaml", "result.json", "README.md", "metrics.jsonl"):
            if (where / name).exists():
                (output.path / name).write_bytes((where / name).read_bytes())
        return output.commit()


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Fold LoRA into the weights, layer by layer in float32, each rounded once."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            weight = module.get_base_layer().weight
            dtype = weight.dtype
            weight.data = weight.data.float()
            module.merge(safe_merge=True)
            weight.data = weight.data.to(dtype)
    return model.base_model.unload()


def _with_adapter(where: Path, trust_remote_code: bool) -> PeftModel:
    """The base, swapped and cut where the adapter's config says so, with the adapter attached."""
    config = AutoConfig.from_pretrained(where)
    held = config.linearize["provenance"]
    base = pretrained.locate(held["base"], revision=held.get("revision"))
    found = pretrained.content_hash(base)
    if found != held["hash"]:
        raise InputError(
            f"the adapter in {where} was trained on another {held['base']}: its content hash was "
            f"{held['hash'][:12]}, now it is {found[:12]}; give it the base it was made from"
        )
    model = pretrained.load(base, dtype=torch.float32, trust_remote_code=trust_remote_code)
    before = getattr(model.config, "linearize", None) or {}
    if "spec" in config.linearize and "spec" not in before:
        model = apply(model, spec_of(config))
    if "loop" in config.linearize and "loop" not in before:
        model = retrofit(model, LoopSpec.from_dict(config.linearize["loop"]))
    model.config.linearize = config.linearize
    adapted = PeftModel.from_pretrained(model, where)
    _compare_keys(adapted, where)
    return adapted


def _compare_keys(model: nn.Module, where: Path) -> None:
    """peft only warns about keys that do not fit; a wrong adapter must not load."""
    file = where / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="pt") as tensors:
            stored = set(tensors.keys())
    except Exception as error:
        raise InputError(f"{file} is missing or damaged ({error}); convert again") from error
    names = (name.replace(".default", "") for name, _ in model.named_parameters())
    wanted = {n.replace(".modules_to_save", "") for n in names if "lora_" in n or "to_save" in n}
    if stored != wanted:
        raise InputError(
            f"{file} does not fit the model: {len(wanted - stored)} parameters missing, "
            f"{len(stored - wanted)} not part of it; was one of the files edited?"
        )


def cast(model: PreTrainedModel, dtype: torch.dtype | str) -> PreTrainedModel:
    """To a dtype, mix weights and prefix encoders excepted: they stay float32."""
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for name, parameter in model.named_parameters():
        if not {"mix", "prefix"} & set(name.split(".")):
            parameter.data = parameter.data.to(wanted)
    model.config.dtype = wanted
    return model


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A dict as readable JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
