"""Do the fast forms of the recurrence compute what its definition does, on this machine?

The definition, token by token in float64 on the CPU, against: chunks on the CPU, chunks on the
device, and fla's kernels on CUDA. The cases are those that break such code. What cannot run here is
named with the reason, so that a file says whether the kernels were tried.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops import backend, gla

LIMIT = 5e-3  # root mean square of the difference over that of the definition: fla's own limit
COLUMNS = ("case", "way", "outputs", "final state", "gradients", "passed")
_DEFINITION = "recurrent"


# case -> keywords of `_inputs`
CASES: dict[str, dict[str, Any]] = {
    "one token": {"length": 1},
    "a step of three": {"length": 3},
    "odd length": {"length": 201},
    "whole chunks": {"length": 256},
    "grouped heads": {"length": 130, "heads": 6, "kv_heads": 2},
    "wide heads": {"length": 130, "width": 128},
    "one decay per head": {"length": 130, "decays": 1},
    "strong decay": {"length": 130, "strength": 50.0},
    "no decay": {"length": 130, "strength": 0.0},
    "from a state": {"length": 130, "state": True},
    "packed": {"length": 130, "packed": (0, 1, 64, 70, 130), "state": True},
}


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.add_argument("--cases", nargs="+", default=tuple(CASES), choices=CASES, metavar="CASE")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records."""
    return "gla against its definition", run(device, asked.cases)


def run(device: torch.device, cases: Sequence[str] = tuple(CASES)) -> Iterator[dict[str, Any]]:
    """One record per case: `op`, `case`, `limit`; by way `passed`, and relative differences of
    `outputs`, `state` and `gradients` (the largest; None = not finite); `skipped`: reason by way.
    """
    ways = {"chunk, cpu": (torch.device("cpu"), "chunk")}
    if device.type != "cpu":
        ways[f"chunk, {device.type}"] = (device, "chunk")
    able, why = backend.fla_status()
    if able and device.type == "cuda":
        ways["fla"] = (device, "fla")
    skipped = {} if "fla" in ways else {"fla": f"device {device.type} asked for" if able else why}
    for case in cases:
        given, boundaries = _inputs(**CASES[case])
        expected = _results(given, boundaries, torch.device("cpu"), torch.float64, _DEFINITION)
        record = {"op": "gla", "case": case, "limit": LIMIT, "skipped": skipped}
        found = {
            way: _compare(_results(given, boundaries, on, torch.float32, how), expected)
            for way, (on, how) in ways.items()
        }
        for name in ("outputs", "state", "gradients"):
            record[name] = {way: differences[name] for way, differences in found.items()}
        record["passed"] = {
            way: all(value is not None and value <= LIMIT for value in differences.values())
            for way, differences in found.items()
        }
        yield record


def _inputs(
    *,
    length: int,
    heads: int = 2,
    kv_heads: int = 2,
    width: int = 64,
    decays: int | None = None,
    strength: float = 1 / 16,
    state: bool = False,
    packed: tuple[int, ...] = (),
) -> tuple[dict[str, Tensor], Tensor | None]:
    """float64 inputs as Liger's feature map and gate make them, and the boundaries of packing."""
    make = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    made = {
        "q": draw(1, length, heads, width).softmax(-1),
        "k": draw(1, length, kv_heads, width).softmax(-1),
        "v": draw(1, length, kv_heads, width),
        "g": strength * F.logsigmoid(draw(1, length, kv_heads, decays or width)),
    }
    if state:
        made["initial_state"] = draw(max(1, len(packed) - 1), kv_heads, width, width)
    return made, torch.tensor(packed, dtype=torch.int32) if packed else None


def _results(
    given: dict[str, Tensor],
    boundaries: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
    how: str,
) -> dict[str, list[Tensor]]:
    """Outputs, final state and gradients of every input, of one backend, in float64."""
    inputs = {n: x.to(device, dtype).requires_grad_() for n, x in given.items()}
    if boundaries is not None:
        boundaries = boundaries.to(device)
    o, state = gla(**inputs, cu_seqlens=boundaries, backend=how)
    make = torch.Generator().manual_seed(0)
    weighted = (
        (x * torch.randn(x.shape, generator=make, dtype=torch.float64).to(x)).sum()
        for x in (o, state)
    )
    gradients = torch.autograd.grad(sum(weighted), list(inputs.values()))
    found = {"outputs": [o], "state": [state], "gradients": list(gradients)}
    return {n: [x.detach().double().cpu() for x in xs] for n, xs in found.items()}


def _compare(
    found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]
) -> dict[str, float | None]:
    """The largest difference of each kind; None where something is not finite."""
    apart: dict[str, float | None] = {}
    for name, wanted in expected.items():
        finite = all(x.isfinite().all() for x in found[name])
        pairs = zip(found[name], wanted, strict=True)
        apart[name] = max(_apart(a, b) for a, b in pairs) if finite else None
    return apart


def _apart(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference over that of b, which is 0 for some gradients."""
    scale = b.square().mean().sqrt().clamp(min=1e-4)
    return float((a - b).square().mean().sqrt() / scale)


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    for way, passed in record["passed"].items():
        differences = (record[n][way] for n in ("outputs", "state", "gradients"))
        cells = ["not finite" if value is None else f"{value:.1e}" for value in differences]
        yield [record["case"], way, *cells, "yes" if passed else "NO"]
    for way, why in record["skipped"].items():
        yield [record["case"], way, "", "", "", f"not tried: {why}"]
