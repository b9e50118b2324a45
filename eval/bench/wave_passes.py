"""Core passes of diffusion forcing beside the released sampler's, and whether texts are equal.

A count, not a time: the same on any machine, up to rounding. Greedy; the model must be trained,
for random weights settle on nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearize.decoding.recurrent_depth.autoregressive import autoregressive
from linearize.decoding.recurrent_depth.diffusion_forcing import diffuse
from linearize.decoding.recurrent_depth.request import Request, Run
from linearize.decoding.recurrent_depth.wave_settings import WaveSettings
from linearize.errors import UsageError, suggest
from linearize.recurrent_depth.interface import require_looped

from . import recurrent_depth
from .loading import load

# Those of the recorded runs of the released code, and exact mode, which it does not have.
SETTINGS: dict[str, dict[str, Any]] = {
    "r' = 4": {},
    "r' = 8": {"inner_recurrence": 8},
    "r' = 2, noise 0.5, dampened": {
        "inner_recurrence": 2, "noise": 0.5, "noise_schedule": "dampened", "init_scale": 1.0,
    },
    "r' = 2, noise 0.3, sqrt mixing": {
        "inner_recurrence": 2, "noise": 0.3, "noise_schedule": "dampened", "init_scale": 1.0,
        "noise_mixing": "sqrt",
    },
    "r' = 1, noise 0.2, constant": {
        "inner_recurrence": 1, "noise": 0.2, "noise_schedule": "constant", "init_scale": 1.0,
    },
    "r' = 2, momentum 0, threshold 0.1": {
        "inner_recurrence": 2, "momentum": 0.0, "exit_threshold": 0.1,
    },
    "r' = 2, momentum 0.5": {"inner_recurrence": 2, "momentum": 0.5},
    "r' = 2, threshold 0.002": {"inner_recurrence": 2, "exit_threshold": 0.002},
    "r' = 1, threshold 0.01, wavefront 4": {
        "inner_recurrence": 1, "max_wavefront": 4, "exit_threshold": 0.01,
    },
    "r' = 4, headway 2, random states": {"headway": 2, "init_scale": 1.0},
    "r' = 4, fixed, r = 16": {"num_steps": 16, "freeze": "fixed"},
    "r' = 4, token-stability, r = 16": {"num_steps": 16, "freeze": "token-stability"},
    "r' = 2, latent-acceleration-1": {"inner_recurrence": 2, "freeze": "latent-acceleration-1"},
    "r' = 2, latent-acceleration-2": {"inner_recurrence": 2, "freeze": "latent-acceleration-2"},
    "r' = 2, continuous compute": {"inner_recurrence": 2, "continuous_compute": True},
    "r' = 4, all recurrences kept": {"cache_budget": None},
    "r' = 4, 4 recurrences kept": {"cache_budget": 4},
    "r' = 4, verify": {"verify": True},
}  # fmt: skip
COLUMNS = (
    "setting",
    "released",
    "ours",
    "fewer",
    "wave, released",
    "wave, ours",
    "text of autoregression, released",
    "ours",
)


def compare(
    model: Any,
    prompts: Sequence[Tensor],
    settings: Mapping[str, Mapping[str, Any]] = SETTINGS,
    *,
    tokens: int = 40,
    recurrences: int = 32,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """One record per setting, over all of `prompts`, ids int64 [1, L] each.

    A record: `setting`, `told`, `autoregressive`, core passes of plain decoding per prompt; of
    `ours` and `released` (absent where it cannot) `passes`, prompt's included, `wavefront`, mean
    positions at work, and `equal`, whether the text is that of plain decoding: lists by prompt.
    - `seed`: of states and noise where they are random.
    """
    plain = [
        autoregressive(model, Request(ids, tokens), num_steps=recurrences, cache_budget=1)
        for ids in prompts
    ]
    for name, told in settings.items():
        record: dict[str, Any] = {
            "setting": name,
            "told": dict(told),
            "tokens": tokens,
            "autoregressive": [run.spent.core_passes for run in plain],
        }
        ways = {"ours": None} if told.get("verify") else {"ours": None, "released": "reference"}
        for way, compat in ways.items():
            how = WaveSettings(**{"num_steps": recurrences, **told, "compat": compat})
            runs = [diffuse(model, Request(ids, tokens), how, seeds=[seed]) for ids in prompts]
            record[way] = _told(runs, plain)
        yield record


def _told(runs: Sequence[Run], plain: Sequence[Run]) -> dict[str, list[Any]]:
    return {
        "passes": [run.spent.core_passes for run in runs],
        "wavefront": [run.spent.row(0)["mean_wavefront"] for run in runs],
        "equal": [a.ids.tolist() == b.ids.tolist() for a, b in zip(runs, plain, strict=True)],
    }


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a trained looped model with its tokenizer"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="held-out text [Python's standard library]"
    )
    for name, default, about in (
        ("rows", 4, "prompts"),
        ("context", 32, "tokens of each prompt"),
        ("tokens", 40, "new tokens of each"),
        ("recurrences", 32, "r, where the setting does not say"),
        ("seed", 0, "of random states"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{about} [{default}]")
    parser.add_argument(
        "--settings", nargs="+", metavar="NAME", help='some of them, such as "r\' = 4" [all]'
    )


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is counted, in words, and the records. Raises what loading raises, and `UsageError`."""
    for name in ("rows", "context", "tokens"):
        if getattr(asked, name) < 1:
            raise UsageError(f"--{name} {getattr(asked, name)} is below 1")
    chosen = asked.settings or list(SETTINGS)
    for name in chosen:
        if name not in SETTINGS:
            hint = suggest(name, SETTINGS, most=len(SETTINGS))
            raise UsageError(f"there is no setting '{name}'{hint}")
    model, tokenizer = load(asked.model, device)
    require_looped(model, needed_by="this bench")
    if asked.context + asked.tokens > model.loop.context:
        raise UsageError(
            f"{asked.context + asked.tokens} tokens are more than the model's context of "
            f"{model.loop.context}; lower --context or --tokens"
        )
    texts = recurrent_depth.texts(tokenizer, asked.rows, asked.context, asked.prompts).to(device)
    records = compare(
        model,
        list(texts[:, None]),
        {name: SETTINGS[name] for name in chosen},
        tokens=asked.tokens,
        recurrences=asked.recurrences,
        seed=asked.seed,
    )
    plain = asked.tokens * asked.recurrences
    return f"{asked.model}, {asked.rows} prompts, {plain:,} passes each without a wave", records


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Its line of the table."""
    ours, released = record["ours"], record.get("released")
    count = len(ours["passes"])

    def passes(told: Mapping[str, Any] | None) -> str:
        if told is None:
            return "–"
        low, high = min(told["passes"]), max(told["passes"])
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    def wave(told: Mapping[str, Any] | None) -> str:
        return "–" if told is None else f"{sum(told['wavefront']) / count:.1f}"

    def equal(told: Mapping[str, Any] | None) -> str:
        return "–" if told is None else f"{sum(told['equal'])} of {count}"

    fewer = "–"
    if released is not None:
        pairs = zip(ours["passes"], released["passes"], strict=True)
        fewer = f"{sum(a < b for a, b in pairs)} of {count}"
    yield [
        record["setting"],
        passes(released),
        passes(ours),
        fewer,
        wave(released),
        wave(ours),
        equal(released),
        equal(ours),
    ]
