"""`linearize doctor`: what this machine has, what was chosen, what would improve it."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable
from typing import Any

from . import _options as options
from ._print import emit, facts, results_only

LANGUAGES = ("python", "go", "java", "javascript", "typescript", "c", "cpp", "rust")
# Optional package -> what it gives, and the command that installs it.
OPTIONAL = {
    "matplotlib": ("plots in the report", 'pip install "linearize[plots]"'),
    "datasets": ("data sets from the hub as --data", 'pip install "linearize[data]"'),
    "pyarrow": ("parquet files as --data", 'pip install "linearize[parquet]"'),
    "tensorboard": ("training curves in TensorBoard", 'pip install "linearize[track]"'),
    **{
        f"tree-sitter-{language}": (
            f"the grammar of {language} (rpg, metrics of code)",
            f'pip install "linearize[rpg-{language}]"',
        )
        for language in LANGUAGES
    },
    "parso": ("RPG's metrics as released", "pip install parso"),
    "mauve-text": ("the metric MAUVE", 'pip install "linearize[metrics]"'),
    "lm-eval": ("benchmarks of the evaluation harness", 'pip install "linearize[eval]"'),
    "flash-linear-attention": (
        "Triton kernels for the recurrence (CUDA)",
        'pip install "linearize[fla]"',
    ),
    "flash-attn": (
        "FlashAttention for the base (CUDA)",
        "pip install flash-attn --no-build-isolation",
    ),
}
REQUIRED = ["torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy"]


def doctor(json: options.Json = False) -> None:
    """Tell which torch, device and kernels are used here, why, and what would improve it."""
    with results_only(json):
        found = examine()
    if json:
        emit(found)
    else:
        _show(found)


def examine() -> dict[str, Any]:
    """Everything the command tells, as plain JSON types."""
    import torch

    import linearize
    from linearize import device as devices
    from linearize.ops import backend

    device = devices.pick()
    return {
        "linearize": linearize.__version__,
        "python": platform.python_version(),
        "torch": {
            "version": torch.__version__,
            "build": _build(torch),
            "threads": torch.get_num_threads(),
        },
        "device": {
            "chosen": str(device),
            "name": devices.describe(device),
            "memory_bytes": devices.memory(device),
        },
        "packages": {name: _version(name) for name in REQUIRED},
        "optional": [
            {"package": name, "version": _version(name), "gives": gives, "install": command}
            for name, (gives, command) in OPTIONAL.items()
        ],
        "backends": backend.report(),
        "advice": _advice(torch),
    }


def _build(torch: Any) -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return "CPU only"


def _advice(torch: Any) -> dict[str, str]:
    """What is wrong with this installation, and the remedy."""
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        return {
            "torch": "there is an NVIDIA GPU, and this build of torch cannot use it: install the "
            "build for its CUDA version (pytorch.org, Get started)"
        }
    return {}


def _version(package: str) -> str | None:
    from importlib import metadata  # slow to import: not for --help

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _show(found: dict[str, Any]) -> None:
    from linearize.figures import bytes_text

    torch, device = found["torch"], found["device"]
    absent = [r for r in found["optional"] if not r["version"]]
    facts(
        {
            "linearize": f"{found['linearize']}, Python {found['python']}",
            "torch": f"{torch['version']}, {torch['build']}, {torch['threads']} CPU threads",
            "device": f"{device['chosen']}: {device['name']}, {bytes_text(device['memory_bytes'])}",
            "packages": _list(found["packages"].items()),
            "optional": _list((r["package"], r["version"]) for r in found["optional"]),
        }
    )
    print("\nWhat runs each operation")
    facts({r["op"]: f"{r['backend']} ({r['why']})" for r in found["backends"]})
    gains = {r["op"]: r["improve"] for r in found["backends"] if r["improve"]}
    if gains | found["advice"]:
        print("\nWhat would be faster")
        facts(gains | found["advice"])
    if absent:
        print("\nWhat could be added")
        facts({r["package"]: f"{r['gives']}: {r['install']}" for r in absent})


def _list(versions: Iterable[tuple[str, str | None]]) -> str:
    return ", ".join(f"{name} {version or 'absent'}" for name, version in versions)
