"""Samplers of looped models against plain autoregression, in one run.

- Time is that beyond the prompt alone, r recurrences, as autoregression takes it in the same round.
  (Diffusion forcing begins beside the prompt; what that costs is its own.)
- Greedy, zero initial states, one kept recurrence, as the paper (arXiv 2510.14961) has it.
- With random weights every token is given (see `looped_shapes`) and is final after a number of
  recurrences that is given too: speed is measured and text is not.
"""

from __future__ import annotations

import ast
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.decoding.recurrent_depth.adaptive import adaptive
from linearize.decoding.recurrent_depth.autoregressive import autoregressive
from linearize.decoding.recurrent_depth.diffusion_forcing import diffuse
from linearize.decoding.recurrent_depth.request import Request, Run
from linearize.decoding.recurrent_depth.speculative import self_speculative
from linearize.decoding.recurrent_depth.wave_settings import WaveSettings
from linearize.errors import InputError, UsageError

from . import peak, samplers
from .timing import wait
from .watched import Watched, bare

REFERENCE, DIFFUSION = "autoregressive", "diffusion-forcing"
INNER, THRESHOLDS, WAVEFRONTS = (1, 2, 4, 8), (0.01, 0.03, 0.1, 0.3), (4, 128)
SETTLED = (8, 16, 32)  # recurrences after which a given token is final, with random weights
BATCHES, CONTEXT, TOKENS, RECURRENCES = (1, 8), 32, 128, 32


@dataclass(frozen=True)
class Way:
    """A sampler and what it is told; `run` (model, request) does it."""

    sampler: str
    run: Callable[[Any, Request], Run]
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Taken:
    """Seconds by both clocks, of all and until the prelude is called a second time."""

    wall: float
    cpu: float
    prompt_wall: float
    prompt_cpu: float
    ids: Tensor
    run: Run
    watched: Watched
    peak_bytes: int | None


def run(
    model: Any,
    texts: Tensor,
    *,
    scripted: bool = False,
    tokens: int = TOKENS,
    recurrences: int = RECURRENCES,
    batches: Sequence[int] = BATCHES,
    inner: Sequence[int] = INNER,
    thresholds: Sequence[float] = THRESHOLDS,
    wavefronts: Sequence[int] = WAVEFRONTS,
    settled: Sequence[int] = SETTLED,
    rounds: int = 3,
    sweep_rows: int = 4,
) -> Iterator[dict[str, Any]]:
    """One record per sampler and batch size, then one per setting of the wave at batch 1.

    - `texts` int64 [P, context + tokens]: what follows the context is what a file says there, for
      `of_text`; nothing else reads it. P at least the largest batch; the sweep takes `sweep_rows`.
    - `scripted`: the model is `looped_shapes.Scripted`; the sweep is over `settled` instead of
      `thresholds`.

    A record: `sampler`, `told` (its settings), `batch`, `tokens`, `core_passes`, `core_tokens`,
    `seconds`, `cpu_seconds` beyond the prompt alone, `prompt_seconds`, `ratio`, `cpu_ratio`
    (autoregression's time over its own, in the same rounds), `equal` (share of tokens equal to
    autoregression's), `of_text` (share equal to the file's), `loss` (nats per token of what it
    wrote, under the model at r recurrences), `mean_wavefront`, `cache_bytes`, `peak_bytes`; with
    `over_bare`, `cpu_over_bare`: the sampler's time over that of the same layers in a plain loop,
    from the second call of the prelude on.
    Seconds are medians over `rounds` in which all take turns.

    Raises `UsageError` for fewer than 2 tokens: the first one is not timed.
    """
    if tokens < 2:
        raise UsageError(f"tokens={tokens}: at least 2, for the first one is not timed")
    context = texts.shape[1] - tokens
    first = SETTLED[1] if scripted else None
    for batch in batches:
        ways = [plain(recurrences), wave(recurrences, 4, first or 0.03, 128, scripted=scripted)]
        if not scripted:
            ways += [
                Way("adaptive", lambda m, q: adaptive(m, q, num_steps=recurrences, cache_budget=1)),
                Way(
                    "self-speculative",
                    lambda m, q: self_speculative(m, q, num_steps=recurrences, cache_budget=1),
                ),
            ]
        prompts = [texts[:batch]]
        yield from _compare(model, ways, prompts, context, tokens, recurrences, rounds, scripted)
    ends = settled if scripted else thresholds
    count = 1 if scripted else min(sweep_rows, len(texts))
    rows = [texts[i : i + 1] for i in range(count)]
    for steps in inner:
        ways = [plain(recurrences)]
        ways += [
            wave(recurrences, steps, end, width, scripted=scripted)
            for end in ends
            for width in wavefronts
            if not scripted or steps <= end
        ]
        found = _compare(model, ways, rows, context, tokens, recurrences, 1, scripted, alone=False)
        yield from (record for record in found if record["sampler"] == DIFFUSION)


def plain(recurrences: int) -> Way:
    """Plain autoregression."""
    return Way(REFERENCE, lambda m, q: autoregressive(m, q, num_steps=recurrences, cache_budget=1))


def wave(recurrences: int, inner: int, end: float, width: int, *, scripted: bool) -> Way:
    """Diffusion forcing; `end` is a threshold, or recurrences where tokens are given."""
    told: dict[str, Any] = {"inner_recurrence": inner, "max_wavefront": width}
    if scripted:
        told |= {"freeze": "fixed", "num_steps": int(end)}
    else:
        told |= {"exit_threshold": end, "num_steps": recurrences}
    settings = WaveSettings(**told)
    return Way(DIFFUSION, lambda m, q: diffuse(m, q, settings), told)


def _compare(
    model: Any,
    ways: Sequence[Way],
    prompts: Sequence[Tensor],
    context: int,
    tokens: int,
    recurrences: int,
    rounds: int,
    scripted: bool,
    *,
    alone: bool = True,
) -> Iterator[dict[str, Any]]:
    """Every way on every one of `prompts` [B, context + tokens]; the first way is the reference.

    - `alone`: also the layers without a sampler.
    """
    texts = [p.to(model.device) for p in prompts]
    requests = [Request(text[:, :context], tokens) for text in texts]
    with torch.inference_mode():
        for way in ways if alone else ways[:1]:  # warm up
            way.run(model, requests[0])
        taken: list[list[list[_Taken]]] = [[] for _ in ways]
        bares: list[list[dict[str, float] | None]] = [[] for _ in ways]
        for _ in range(rounds):
            for i, way in enumerate(ways):
                taken[i].append([_once(model, way, request) for request in requests])
                if alone:
                    layers = getattr(model, "model", model) if scripted else model
                    bares[i].append(_bare_seconds(layers, taken[i][-1]))
        written = [[each.ids[:, context:] for each in some[-1]] for some in taken]
        expected = written[0]
        for way, some, own, layers in zip(ways, taken, written, bares, strict=True):
            last = some[-1]
            record = {
                "sampler": way.sampler,
                "told": way.told,
                "batch": len(texts[0]),
                "prompts": len(texts),
                "tokens": tokens,
                "core_passes": sum(each.run.spent.core_passes for each in last),
                "core_tokens": sum(each.run.spent.core_tokens for each in last),
                **_times(some, taken[0]),
                "mean_wavefront": _mean_width(last),
                "cache_bytes": max(each.watched.cache.nbytes for each in last),
                "peak_bytes": max((each.peak_bytes or 0) for each in last) or None,
            }
            if not scripted:
                record["equal"] = _share(own, expected)
                record["of_text"] = _share(own, [text[:, context:] for text in texts])
                record["loss"] = _loss(model, last, context, recurrences)
            if layers and None not in layers:
                for name, clock in (("over_bare", "wall"), ("cpu_over_bare", "cpu")):
                    record[name] = statistics.median(
                        sum(_after(each, each, clock) for each in together) / times[clock]
                        for together, times in zip(some, layers, strict=True)
                    )
            yield record


def _once(model: Any, way: Way, request: Request) -> _Taken:
    watched = Watched(model)
    peak.reset()
    wait()
    began, cpu = time.perf_counter(), time.process_time()
    found = way.run(watched, request)
    wait()
    return _Taken(
        time.perf_counter() - began,
        time.process_time() - cpu,
        watched.prompt_wall - began,
        watched.prompt_cpu - cpu,
        found.ids,
        found,
        watched,
        peak.read(),
    )


def _bare_seconds(model: Any, taken: Sequence[_Taken]) -> dict[str, float] | None:
    """The layers alone, by both clocks."""
    loop = bare(model, [call for each in taken for call in each.watched.calls])
    if loop is None:
        return None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    loop()
    wait()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _times(
    taken: Sequence[Sequence[_Taken]], plain: Sequence[Sequence[_Taken]]
) -> dict[str, float]:
    """Medians over rounds [round][prompt], beyond what the prompts take `plain`ly in each."""

    def median(some: Sequence[Sequence[_Taken]], clock: str) -> float:
        return statistics.median(
            sum(_after(each, own, clock) for each, own in zip(together, alone, strict=True))
            for together, alone in zip(some, plain, strict=True)
        )

    seconds, cpu = median(taken, "wall"), median(taken, "cpu")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "prompt_seconds": statistics.median(sum(x.prompt_wall for x in some) for some in plain),
        "ratio": median(plain, "wall") / seconds,
        "cpu_ratio": median(plain, "cpu") / cpu,
    }


def _after(taken: _Taken, prompt: _Taken, clock: str) -> float:
    """Seconds of all but what the prompt took there."""
    return getattr(taken, clock) - getattr(prompt, f"prompt_{clock}")


def _mean_width(taken: Sequence[_Taken]) -> float | None:
    widths = [w for each in taken for row in getattr(each.run.spent, "widths", []) for w in row]
    return sum(widths) / len(widths) if widths else None


def _share(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(torch.cat([(x == y).flatten() for x, y in zip(a, b, strict=True)]).float().mean())


def _loss(model: Any, taken: Sequence[_Taken], context: int, recurrences: int) -> float:
    losses = []
    for ids in (each.ids for each in taken):
        logits = model(ids, num_steps=(recurrences, 0), use_cache=False).logits[:, context - 1 : -1]
        losses.append(F.cross_entropy(logits.transpose(1, 2), ids[:, context:]))
    return float(torch.stack(losses).mean())


def texts(tokenizer: Any, rows: int, length: int, file: Path | None = None) -> Tensor:
    """int64 [rows, length]: pieces of a text file, or of Python's standard library.

    Raises `InputError` for a file that cannot be read or is too short.
    """
    if file is None:
        return torch.tensor([_module(tokenizer, i, length) for i in range(rows)])
    try:
        ids = tokenizer(file.read_text(encoding="utf-8"), verbose=False).input_ids
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text: {error}") from error
    if len(ids) < rows * length:
        raise InputError(
            f"{file} has {len(ids):,} tokens and {rows} pieces of {length} are wanted: give a "
            "longer file, or less --context, --tokens or --batches"
        )
    apart = len(ids) // rows
    return torch.tensor([ids[i * apart :][:length] for i in range(rows)])


def _module(tokenizer: Any, index: int, length: int) -> list[int]:
    name = samplers.SOURCES[index % len(samplers.SOURCES)]
    text = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
    blocks = ast.parse(text).body
    start = next(b.lineno for b in blocks if isinstance(b, ast.FunctionDef | ast.ClassDef))
    text = "".join(text.splitlines(keepends=True)[start - 1 :])
    ids = tokenizer(text, verbose=False).input_ids
    skip = index // len(samplers.SOURCES) * length
    return (ids * (1 + (skip + length) // len(ids)))[skip : skip + length]
