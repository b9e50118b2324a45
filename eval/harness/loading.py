"""A model to evaluate, and what identifies it: everything that can change a score."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from linearize.errors import InputError

ADAPTER = "adapter_config.json"


def load(
    name: str | Path,
    *,
    peft: str | Path | None = None,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    device: Any = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[Any, Any, dict[str, Any]]:
    """(model, tokenizer, identity) from a directory, a hub id or "embedded".

    - `name`: converted models, their adapters, plain and looped models of transformers; a
      directory with nothing but a peft adapter is put on the base it names.
    - `peft`: an adapter to put on the model; it is merged in memory.
    - `dtype`: "auto" is the checkpoint's, on the CPU float32.

    Raises `InputError` for what is missing, damaged or does not belong together.
    """
    import linearize
    from linearize import device as devices
    from linearize import pretrained

    where = pretrained.locate(str(name), revision=revision, trust_remote_code=trust_remote_code)
    if peft is None and (where / ADAPTER).exists() and not (where / "config.json").exists():
        peft, named = where, _base_of(where)
        where = pretrained.locate(named, trust_remote_code=trust_remote_code)
    words = pretrained.tokenizer(
        pretrained.locate(str(tokenizer)) if tokenizer else where, trust_remote_code
    )
    model = linearize.load(where, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    identity = {"hash": _hash(where)}
    if peft is not None:
        adapter = pretrained.locate(str(peft))
        model = _adapted(model, adapter)
        identity["adapter_hash"] = _hash(adapter)
    model = model.to(devices.dtype(dtype, model.dtype, model.device))
    return model, words, {**identity, **_rest(model, words)}


def live(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The identity of a model that is in memory already."""
    import torch

    digest = hashlib.sha256(json.dumps(model.config.to_dict(), default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return {"hash": digest.hexdigest(), **_rest(model, tokenizer)}


def _rest(model: Any, tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return {
        "tokenizer_hash": hashlib.sha256(words.encode()).hexdigest(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def _hash(where: Path) -> str:
    from linearize import pretrained

    if not (where / ADAPTER).exists():
        return pretrained.content_hash(where)
    digest = hashlib.sha256()
    for file in (where / ADAPTER, where / "config.json", where / "adapter_model.safetensors"):
        if file.exists():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _base_of(adapter: Path) -> str:
    try:
        named = json.loads((adapter / ADAPTER).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{adapter / ADAPTER} cannot be read: {error!r}") from error
    if not named:
        raise InputError(f"{adapter / ADAPTER} names no base; give it as the model, and peft=DIR")
    return str(named)


def _adapted(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    from linearize.converted import merge_adapter

    if not (adapter / ADAPTER).exists():
        raise InputError(f"{adapter} holds no adapter: there is no {ADAPTER}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*missing adapter keys.*")  # peft only warns
            return merge_adapter(PeftModel.from_pretrained(model, adapter)).eval()
    except Exception as error:  # shapes, targets and keys fail in different libraries
        told = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(f"the adapter in {adapter} does not fit the model: {told}") from error
