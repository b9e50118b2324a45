"""Everything a run needs to go on as if nothing had happened, on disk all at once or not at all.

`<run>/checkpoints/step-00000100/` holds `state.safetensors` (trained parameters, AdamW moments,
training losses so far) and `state.json` (counters, settings, checksum). A checkpoint is written
under a temporary name, synced, then renamed, so a killed process leaves either all of it or a
directory that the next run removes. The loop seeds the random generators from the step number,
so there is no generator state to keep.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError, OutputError
from .sharding import like, whole

FORMAT = 1
_KEEP = 2
_TENSORS, _STATE = "state.safetensors", "state.json"
_MORE = "more/"  # before the names of tensors that are neither parameters nor moments


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps done, tokens seen, seconds spent, loss of each step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()


def directory(run_dir: Path) -> Path:
    """Where the checkpoints of a run are."""
    return run_dir / "checkpoints"


def latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint; what a killed process left half-written does not count."""
    return max(directory(run_dir).glob("step-*"), default=None)


def save(
    run_dir: Path,
    progress: Progress,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    more: Mapping[str, Tensor] | None = None,
    write: bool = True,
) -> Path:
    """Write a checkpoint and remove all but the last two.

    Args:
        run_dir: the run's directory.
        progress: counters and losses.
        parameters: trained parameters by name.
        optimizer: AdamW over them.
        settings: JSON-able; `load` refuses a run whose settings differ.
        extra: JSON-able state of anything else; `load` hands it back.
        more: the same as tensors.
        write: False in processes that only take part in making shared parameters whole.

    Raises `OutputError` if it cannot be written; earlier checkpoints stay as they were.
    """
    home = directory(run_dir)
    final = home / f"step-{progress.step:08d}"
    partial = home / f".partial-{progress.step:08d}"
    tensors = _pack(parameters, optimizer, keep=write)
    if not write:
        return final
    try:
        home.mkdir(parents=True, exist_ok=True)
        for leftover in home.glob(".*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        losses = torch.tensor(progress.losses, dtype=torch.float64)
        others = {f"{_MORE}{name}": tensor for name, tensor in (more or {}).items()}
        save_file(tensors | {"losses": losses} | others, partial / _TENSORS)
        state = {
            "format": FORMAT,
            "step": progress.step,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "settings": dict(settings),
            "extra": dict(extra or {}),
            "sha256": _file_hash(partial / _TENSORS),
        }
        state["state_sha256"] = _state_hash(state)
        (partial / _STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        for path in (partial / _TENSORS, partial / _STATE, partial):
            _sync(path)
        if final.exists():
            _remove(final)
        partial.rename(final)
        _sync(home)
        for old in sorted(home.glob("step-*"))[:-_KEEP]:
            _remove(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = latest(run_dir)
        rest = f"the last good checkpoint is {kept}" if kept else "there is no earlier checkpoint"
        raise OutputError(
            f"cannot write checkpoint {final}: {error}; {rest}; "
            "free some space or mend the directory, then continue with --resume"
        ) from error
    return final


def load(
    path: Path,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
) -> tuple[Progress, dict[str, Any], dict[str, Tensor]]:
    """Put a checkpoint back into parameters and optimizer; returns progress, `extra` and `more`.

    Raises `InputError` if it is truncated, edited, made with other settings or of another model.
    Nothing is changed then.
    """
    state = _read_state(path)
    _compare(path, state["settings"], json.loads(json.dumps(dict(settings))))
    if _file_hash(path / _TENSORS) != state["sha256"]:
        raise _damaged(path, f"{_TENSORS} is not what was written")
    with safe_open(path / _TENSORS, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    losses = tuple(tensors.pop("losses").tolist())
    saved = {
        name.removeprefix("parameter/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("parameter/")
    }
    if {n: t.shape for n, t in saved.items()} != {n: p.shape for n, p in parameters.items()}:
        different = sorted(saved.keys() ^ parameters.keys()) or ["shapes"]
        raise InputError(
            f"checkpoint {path} belongs to another model: trained parameters differ "
            f"({', '.join(different[:3])}); start afresh in an empty directory"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(saved[name], parameter))
    optimizer.load_state_dict(_unpack(tensors, parameters, optimizer))
    progress = Progress(state["step"], state["tokens"], state["seconds"], losses)
    more = {n.removeprefix(_MORE): t for n, t in tensors.items() if n.startswith(_MORE)}
    return progress, state["extra"], more


def _pack(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, *, keep: bool
) -> dict[str, Tensor]:
    """What a checkpoint holds; nothing without `keep`, which spares the others the memory."""
    packed = {}

    def add(name: str, tensor: Tensor) -> None:
        made = whole(tensor)
        if keep:  # what was gathered must not fill the device
            packed[name] = (made if made is tensor else made.cpu()).contiguous()

    for name, parameter in parameters.items():
        add(f"parameter/{name}", parameter.detach())
        for key, value in optimizer.state[parameter].items():
            add(f"optimizer/{key}/{name}", value)
    return packed


def _unpack(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """The optimizer's own `state_dict`, which numbers parameters in the order of its groups."""
    names = {parameter: name for name, parameter in parameters.items()}
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    packed = optimizer.state_dict()
    packed["state"] = {}
    for name, tensor in tensors.items():
        kind, key, *owner = name.split("/", 2)
        if kind == "optimizer":
            packed["state"].setdefault(owner[0], {})[key] = like(tensor, parameters[owner[0]])
    packed["state"] = {
        index: packed["state"][names[parameter]]
        for index, parameter in enumerate(ordered)
        if names[parameter] in packed["state"]
    }
    return packed


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = dict(json.loads((path / _STATE).read_text(encoding="utf-8")))
        claimed = state.pop("state_sha256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{_STATE} cannot be read ({error})") from error
    if claimed != _state_hash(state):
        raise _damaged(path, f"{_STATE} is not what was written")
    if state["format"] != FORMAT:
        raise InputError(
            f"checkpoint {path} has format {state['format']}, this version reads {FORMAT}; "
            "continue with the version that wrote it, or start afresh in an empty directory"
        )
    return state


def _compare(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [
        f"{key} was {saved.get(key)!r} and is {wanted.get(key)!r}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key)
    ]
    if different:
        raise InputError(
            f"cannot resume from {path}: {'; '.join(different)}; "
            "resume with the settings of the first run, or start afresh in an empty directory"
        )


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"checkpoint {path} is damaged or was edited: {what}; "
        "remove this directory to continue from the one before it"
    )


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise _damaged(path.parent, f"{path.name} is missing") from error


def _state_hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Bring a file or directory to the disk, so that the rename cannot overtake its content."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no directories; renames are ordered there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete a checkpoint without a moment in which it looks complete and is not."""
    hidden = path.with_name(f".old-{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden)
