"""All benches of one shape with random weights on one device, each with its JSON file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from linearize.errors import CheckError, LinearizeError, OutputError

from .registry import BENCHES

SHAPELESS = {"ops", "parity"}  # benches of operators, in dtypes of their own
SMALL = "tiny"  # the shape that takes a minute: for trying the whole path
# Bench -> options; looped models have shapes of their own, gla and window attention none.
_FULL = {
    "ops": [],
    "parity": [],
    "attention": ["--lengths", "1024", "8192", "32768", "--rows", "1", "16"],
    "decode": ["--contexts", "1024", "4096", "16384", "65536", "131072"],
    "prefill": ["--lengths", "1024", "4096", "16384", "32768"],
    "train": ["--lengths", "1024", "8192", "--checkpointing"],
    "recurrent-depth": [],
    "samplers": [],
    "eval": ["--batches", "1", "16"],
}
_TRIAL = {
    "ops": ["--lengths", "64", "--seconds", "0"],
    "parity": ["--cases", "odd length", "packed"],
    "attention": ["--lengths", "64", "--rows", "1", "2", "--seconds", "0"],
    "decode": ["--contexts", "64", "128", "--seconds", "0"],
    "prefill": ["--lengths", "64", "128", "--seconds", "0"],
    "train": ["--lengths", "64", "--checkpointing", "--seconds", "0"],
    "recurrent-depth": ["--quick", "--tokens", "4", "--context", "8", "--batches", "1"],
    "samplers": [
        "--context",
        "32",
        "--tokens",
        "4",
        "--rounds",
        "1",
        "--batches",
        "1",
        "--remedies",
        "dry",
    ],
    "eval": ["--questions", "1", "--seconds", "0"],
}


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.add_argument("--shape", default="llama-3-8b", help="of the random weights [llama-3-8b]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps [auto]")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 [auto]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the files")


def run(asked: argparse.Namespace, bench: Callable[[list[str]], None]) -> None:
    """Call `bench` with the arguments of each; one that fails does not stop the others.

    Raises `CheckError` at the end where one did.
    """
    import torch

    try:
        asked.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{asked.out} cannot be made: {error.strerror}") from error
    trial, failed = asked.shape == SMALL, []
    for name in (name for name, one in BENCHES.items() if not one.trained):
        looped = SMALL if trial else "huginn"
        shape = looped if name == "recurrent-depth" else asked.shape
        device = torch.device(asked.device).type if asked.device != "auto" else "auto"
        file = asked.out / f"{name}-{shape}-{device}.json"
        arguments = [name, *(_TRIAL if trial else _FULL)[name]]
        if name not in SHAPELESS:
            arguments += ["--shape", shape]
        if name not in SHAPELESS | {"recurrent-depth"}:
            arguments += ["--dtype", asked.dtype]
        try:
            bench([*arguments, "--device", asked.device, "--json", str(file)])
        except (LinearizeError, torch.OutOfMemoryError) as error:
            failed.append(name)
            print(f"\n{name}: {' '.join(str(error).split())}")
        print(flush=True)
    if failed:
        raise CheckError(f"{', '.join(failed)} did not end; the others are in {asked.out}")
