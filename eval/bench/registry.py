"""The benches by name: what a command line needs before torch is loaded.

A bench is a row here and a module with

- `options(parser)`: adds its options to an argparse parser;
- `start(asked, device)`: what is measured, in words, and an iterator of records (plain JSON types);
- `COLUMNS`, `rows(record)`: the table that is printed.

`draw(records, file)` of the module `draws` makes a picture; that of `drawing` reads `PANELS`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """`module` and `draws`: below `linearize.eval.bench`; `draws` "" where nothing is drawn.

    `trained`: it needs a trained model, so it is not among `all`, which takes random weights.
    """

    module: str
    about: str
    draws: str = "drawing"
    trained: bool = False


EVERY = "all"
BENCHES = {
    "ops": Bench("ops", "gla and window attention beside full attention"),
    "parity": Bench(
        "parity", "fast forms of the recurrence, fla's among them, beside its definition", ""
    ),
    "attention": Bench("attention", "one layer's attention over prompts, converted beside base"),
    "decode": Bench("decode", "tokens/s and cache over context, converted beside base"),
    "prefill": Bench("prefill", "time and memory of reading a prompt, converted beside base"),
    "train": Bench("train", "time and memory of a LoRA step, converted beside base"),
    "recurrent-depth": Bench(
        "depth_command", "samplers of looped models beside plain autoregression", "front"
    ),
    "passes": Bench(
        "wave_passes",
        "core passes of diffusion forcing beside the released sampler's",
        "",
        trained=True,
    ),
    "samplers": Bench("samplers", "remedies against repetition beside greedy decoding", ""),
    "eval": Bench("scoring", "5-shot log-likelihoods with and without shared beginnings"),
}


def count(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
