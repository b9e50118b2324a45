"""`decode --compare`: one prompt, several ways to choose tokens, and how much each repeats."""

from __future__ import annotations

from typing import Any

from ._decode_reading import Start, cost
from ._decode_session import Session
from ._decode_settings import Settings
from ._print import emit, table

_COLUMN = 40  # below this many characters per text they stand one after the other


def compare(
    session: Session,
    text: str,
    start: Start,
    runs: dict[str, Settings],
    language: str | None,
) -> list[Any]:
    """Print every run's text, then repetition and speed of each. Returns the results.

    - `start`: what is continued, made of the prompt `text`.
    - `language`: of code; the metrics then look at its structure too.
    """
    first = next(iter(runs.values()))
    # The first run in a process is slow for reasons that are not the sampler's.
    session.run([start.prompt], Settings("greedy", {}, {}, 2, 0, [], 1, first.truncate))
    results = {name: session.run([start.prompt], settings)[0] for name, settings in runs.items()}
    metrics = {name: _metrics(text, r, language) for name, r in results.items()}
    if session.as_json:
        for name, result in results.items():
            record = session.record(text, result, runs[name])
            emit({"name": name, **record, **cost(start, result), "metrics": metrics[name]})
    else:
        _texts({name: result.text for name, result in results.items()})
        _table(results, metrics)
    return list(results.values())


def _metrics(text: str, result: Any, language: str | None) -> dict[str, float]:
    from linearize.decoding.repetition import languages
    from linearize.eval.metrics.repetition import repetition

    code = languages.guess(text.encode()) if language == "auto" else language
    return repetition([result.text], language=code, prompts=[text], tokens=[result.ids])


def _texts(texts: dict[str, str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    if console.width < _COLUMN * len(texts):
        for name, text in texts.items():
            console.print(Text(f"--- {name}", "bold"))
            console.print(Text(text), soft_wrap=True)
        return
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in texts:
        drawn.add_column(name, ratio=1, overflow="fold")
    drawn.add_row(*(Text(text) for text in texts.values()))
    console.print(drawn)


def _table(results: dict[str, Any], metrics: dict[str, dict[str, float]]) -> None:
    rows = [
        (metric, *(f"{metrics[name][metric]:.3f}" for name in results))
        for metric in next(iter(metrics.values()))
    ]
    told = {
        "tokens": lambda result: str(len(result.ids)),
        "ended by": lambda result: result.finish_reason,
        "tokens/s": lambda result: f"{result.tokens_per_second:.0f}",
    }
    rows += [(title, *map(tell, results.values())) for title, tell in told.items()]
    table("Repetition (lower is better, except diversity and compile)", ["", *results], rows)
