"""Finding a pretrained model and checking it before anything heavy happens.

Order of use: `locate` (where is it), `read_config` (what is it), `check_weights` (are the files
whole), then `tokenizer` and `load`. Everything before `load` reads a few kilobytes at most.
Weights are read from safetensors only: a pickle checkpoint can run code while it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from .errors import InputError, suggest
from .liger import bases
from .liger import modeling as _modeling  # noqa: F401  registers the converted models

EMBEDDED = "embedded"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# What a causal language model needs, and what its licence is read from. Files in sub-folders and
# `consolidated` weights repeat the same parameters in other formats.
_SAFETENSORS = "*.safetensors"
_WANTED = [_SAFETENSORS, "*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*"]
_UNWANTED = ["*/*", "consolidated*"]
_SIGNS = {INDEX, "pytorch_model.bin.index.json", "adapter_config.json"}  # of weights, without any
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def locate(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Path:
    """The directory of a model, downloaded first if `name` is a hub id.

    - `name`: a local directory, `"embedded"` (the model that ships with the package), or a hub id.
    - `revision`: branch, tag or commit of a hub id.
    - `trust_remote_code`: also download the Python files of a hub id.
    - `weights`: False leaves the weights of a hub id where they are.

    Raises `InputError` if there is no such model or the hub cannot be reached.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name} is a file; give the directory that holds config.json")
    if name == EMBEDDED:
        return _embedded()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError(f"there is no model directory {name}{_nearest(path)}")
    wanted = [p for p in _WANTED if weights or p != _SAFETENSORS]
    return _download(name, revision, wanted + (["*.py"] if trust_remote_code else []))


def read_config(path: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a decoder-only language model. Reads no weights.

    Raises `InputError` for a missing or broken config.json, for a model type transformers does
    not know, for one that needs code from its repository while `trust_remote_code` is False, and
    for models that are not causal language models. Whether a family can be converted is decided
    by `liger.bases.find`.
    """
    values = _json(path / "config.json", _no_config(path))
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(
            f"{path / 'config.json'} has no 'model_type': it does not describe a transformers "
            f"model; supported: {_supported()}"
        )
    if model_type not in CONFIG_MAPPING and not trust_remote_code:
        _refuse_unknown(path, model_type, values)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # each configuration class validates in its own way
        raise InputError(f"{path / 'config.json'} is not usable: {_last_line(error)}") from error
    _require_decoder(path, config, values.get("architectures") or [])
    return config


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up a model, as `from_pretrained` picks them.

    Raises `InputError` if there are none, naming what was found instead.
    """
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if (path / INDEX).exists():
        return sorted({path / name for name in _weight_map(path).values()})
    if (path / "adapter_config.json").exists():
        raise InputError(
            f"{path} holds an adapter, not a model; `linearize merge {path} --out DIR` makes a "
            "model of an adapter that linearize wrote"
        )
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{path / pickles[0]} is a pickle checkpoint, which can run code when it is loaded; "
            "convert it to safetensors where you trust it, e.g. with "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    others = sorted(f.name for f in path.iterdir() if f.suffix in {".safetensors", ".gguf"})
    found = f" (found {', '.join(others[:3])})" if others else ""
    raise InputError(f"{path} has no weights: expected {WEIGHTS} or {INDEX}{found}")


def only_config(path: Path) -> bool:
    """Whether a directory describes a model and holds nothing of its weights, whole or not."""
    parts = {".safetensors", ".gguf", *_PICKLES}
    return not any(f.suffix in parts or f.name in _SIGNS for f in path.iterdir())


def check_weights(path: Path) -> None:
    """Check that every weight file is there and whole. Reads the headers only.

    Raises `InputError` naming the file: missing shard, truncated or damaged file, Git LFS pointer,
    tensor that the index promises and the shard does not have, pickle checkpoint.
    """
    promised: dict[Path, set[str]] = {}
    files = weight_files(path)
    if files != [path / WEIGHTS]:
        for tensor, name in _weight_map(path).items():
            promised.setdefault(path / name, set()).add(tensor)
    for file in files:
        missing = promised.get(file, set()) - _tensor_names(file)
        if missing:
            raise InputError(
                f"{file} lacks {len(missing)} tensors that {INDEX} promises, {min(missing)} among "
                "them; download both again"
            )


def stored_tensors(path: Path) -> dict[str, str]:
    """The tensors that make up a model, and the name of the file that holds each."""
    if (path / WEIGHTS).exists():
        return dict.fromkeys(_tensor_names(path / WEIGHTS), WEIGHTS)
    return _weight_map(path)


def stored_dtype(path: Path, config: PreTrainedConfig) -> torch.dtype:
    """The dtype `load` keeps with `dtype="auto"`: the config's, else that of the weights.

    Without weights, float32 where the config says nothing, as transformers has it.
    """
    if config.dtype is not None or only_config(path):
        return config.dtype or torch.float32
    with safe_open(weight_files(path)[0], framework="pt") as tensors:
        dtypes = (tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118
        return next((_DTYPES[d] for d in dtypes if d in _DTYPES), torch.float32)


def content_hash(path: Path) -> str:
    """sha256 over config.json and the weight files, as 64 hex digits. Reads every byte once."""
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in weight_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def licence(path: Path) -> str | None:
    """What the model says about its licence: the README's front matter, else the licence file."""
    readme = path / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        try:
            values = yaml.safe_load(front[1]) if front else None
        except yaml.YAMLError:
            values = None
        if isinstance(values, dict) and values.get("license"):
            named = values.get("license_name") if values["license"] == "other" else None
            stated = named or values["license"]
            return ", ".join(stated) if isinstance(stated, list) else str(stated)
    files = sorted(f.name for f in path.iterdir() if re.match(r"(?i)licen[cs]e|copying", f.name))
    return f"see {files[0]}" if files else None


def has_tokenizer(path: Path) -> bool:
    """Whether a directory has files of a tokenizer."""
    return any((path / name).exists() for name in _TOKENIZERS)


def tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer. Raises `InputError` if it is missing or damaged."""
    if not has_tokenizer(path):
        raise InputError(f"{path} has no tokenizer: expected tokenizer.json beside config.json")
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file fails in whichever reader comes first
        raise InputError(
            f"the tokenizer in {path} cannot be read ({type(error).__name__}: "
            f"{_first_line(error)}); check tokenizer.json and tokenizer_config.json"
        ) from error


def load(
    path: Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> Any:
    """The model, in evaluation mode, with every parameter read from the checkpoint.

    - `dtype`: `"auto"` keeps the checkpoint's.

    Raises `InputError` if config.json and the weights disagree: parameters missing, left over or
    of another shape.
    """
    check_weights(path)
    try:
        with _quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are listed here, in one line
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} cannot be loaded: {_first_line(error)}") from error
    faults = {
        "missing from the weights": set(info["missing_keys"]),
        "not part of the model": set(info["unexpected_keys"]),
        "of another shape": {str(entry[0]) for entry in info["mismatched_keys"]},
    }
    told = [f"{len(k)} {what} ({', '.join(sorted(k)[:3])})" for what, k in faults.items() if k]
    if told:
        raise InputError(
            f"config.json and the weights of {path} disagree: parameters {'; '.join(told)}; "
            "was one of them edited, or does it belong to another model?"
        )
    return model.to(device).eval()


def _embedded() -> Path:
    path = Path(__file__).parent / "embedded"
    if not (path / "config.json").exists():
        raise InputError(
            "the embedded model is missing from this installation; reinstall linearize"
        )
    return path


def _nearest(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f": {parent} does not exist either"
    hint = suggest(path.name, [p.name for p in parent.iterdir() if p.is_dir()])
    return hint if "did you mean" in hint else ""  # not the list of everything beside it


def _download(name: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=_UNWANTED,
            )
        )
    except GatedRepoError as error:
        raise InputError(
            f"{name} is gated: accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"the hub model {name} has no revision '{revision}'") from error
    except HFValidationError as error:
        raise InputError(f"'{name}' is neither a local directory nor a hub id: {error}") from error
    except Exception as error:  # network errors come from several libraries below the hub client
        raise InputError(
            f"no model '{name}': there is no such directory, and the hub could not be reached or "
            f"has no such model ({_first_line(error)}); a local directory works too"
        ) from error


def _json(path: Path, absent: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(absent) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); download it again"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object; download it again")
    return values


def _no_config(path: Path) -> str:
    if (path / "adapter_config.json").exists():
        return f"{path} holds an adapter, not a model: it has adapter_config.json, no config.json"
    return f"{path} has no config.json: it is not a transformers model directory"


def _supported() -> str:
    return ", ".join(bases.supported())


def _refuse_unknown(path: Path, model_type: str, values: dict[str, Any]) -> None:
    if "auto_map" in values:
        raise InputError(
            f"model type '{model_type}' in {path} needs Python code from its repository; read that "
            "code, then pass --trust-remote-code to run it (trust_remote_code in Python)"
        )
    raise InputError(
        f"model type '{model_type}' is unknown to transformers; supported: {_supported()}"
    )


def _require_decoder(path: Path, config: PreTrainedConfig, architectures: list[str]) -> None:
    named = f" ({', '.join(architectures)})" if architectures else ""
    if config.is_encoder_decoder:
        raise InputError(
            f"{path} is an encoder-decoder model{named}; only decoder-only language models can be "
            f"converted; supported: {_supported()}"
        )
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map")
    causal = any(a.endswith(("CausalLM", "LMHeadModel")) for a in architectures)
    if not known or (architectures and not causal):
        raise InputError(
            f"{path} is not a decoder-only language model{named}: it has no head that predicts "
            f"the next token; supported: {_supported()}"
        )


def _weight_map(path: Path) -> dict[str, str]:
    values = _json(path / INDEX, f"{path} has no {INDEX}").get("weight_map")
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path / INDEX} has no 'weight_map'; download it again")
    return values


def _tensor_names(file: Path) -> set[str]:
    if not file.is_file():
        raise InputError(f"{file} is missing, and {INDEX} names it; download it again")
    with file.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise InputError(f"{file} is a Git LFS pointer, not weights; run `git lfs pull`")
    try:
        with safe_open(file, framework="pt") as tensors:  # checks offsets against the file's length
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} ({file.stat().st_size:,} bytes) is truncated or damaged: {error}; "
            "copy or download it again"
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    # Its load report is a table over many lines; `load` says the same in one.
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")
