"""`decode --prompt`: the text as it comes, or JSON, or with what remedies changed in it."""

from __future__ import annotations

import sys
from typing import Any

from ._decode_explain import Explanation
from ._decode_reading import Start, cost, cost_line
from ._decode_session import Session
from ._decode_settings import Settings
from ._print import emit


def show(
    session: Session,
    text: str,
    start: Start,
    settings: Settings,
    *,
    explain: bool,
) -> list[Any]:
    """Continue `start`, which was made of the prompt `text`. Returns the results."""
    stream = not (session.as_json or explain or settings.num_return > 1)
    heard = Explanation(session.tokenizer) if explain else None
    results = session.run(
        [start.prompt], settings, on_text=_write if stream else None, on_penalty=heard
    )
    for place, result in enumerate(results):
        if session.as_json:
            told = {"penalties": heard.record(0)} if heard else {}
            record = session.record(text, result, settings, place)
            emit({**record, **cost(start, result), **told})
            continue
        if heard:
            heard.show(0, session.ids(start.prompt, settings), result, settings.stop)
        elif stream:
            print(flush=True)
        else:
            print(f"--- {place + 1} of {len(results)}\n{result.text}", flush=True)
        print(
            f"{len(result.ids)} tokens after {result.prompt_tokens}, "
            f"{result.tokens_per_second:.0f} tokens/s, ended by {result.finish_reason}",
            file=sys.stderr,
        )
    if not session.as_json and (line := cost_line(start, results[0])):
        print(line, file=sys.stderr)
    return results


def _write(piece: str) -> None:
    print(piece, end="", flush=True)
