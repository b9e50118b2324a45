"""`decode --chat` in the terminal: a conversation by the model's own template."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from typing import Any

from linearize.errors import InputError

from ._decode_session import Session
from ._decode_settings import Settings
from ._print import emit

_END = {"/exit", "/quit", "/bye"}


def messages(system: str | None, text: str) -> list[dict[str, str]]:
    """The beginning of a conversation."""
    return [*opening(system), {"role": "user", "content": text}]


def opening(system: str | None) -> list[dict[str, str]]:
    """What stands before the first message."""
    return [{"role": "system", "content": system}] if system else []


def talk(session: Session, settings: Settings, system: str | None) -> list[Any]:
    """Read messages from stdin until /exit or the end of input; returns the results.

    Ctrl-C ends the answer that is being written; what there is of it stays in the conversation.
    A message that does not fit the model is told and taken back.
    """
    said = opening(system)
    session.chat([*said, {"role": "user", "content": "."}])  # no template: say so before the prompt
    results: list[Any] = []
    while (text := _read()) is not None:
        if not text.strip():
            continue
        said.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            results += session.run(
                [session.chat(said)],
                settings,
                on_text=pieces.append if session.as_json else partial(_show, pieces),
            )
        except KeyboardInterrupt:
            print(" (ended)", file=sys.stderr)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            said.pop()
            continue
        else:
            if session.as_json:
                emit(session.record(text, results[-1], settings))
        if not session.as_json:
            print(flush=True)
        said.append({"role": "assistant", "content": "".join(pieces)})
    return results


def _read() -> str | None:
    """The next message; None at the end."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # there is none on some systems
            import readline  # noqa: F401  makes `input` editable, with a history
        try:
            line = input("> ")
        except EOFError:
            return None
    else:
        line = sys.stdin.readline()
        if not line:
            return None
    return None if line.strip() in _END else line.rstrip("\n")


def _show(pieces: list[str], piece: str) -> None:
    pieces.append(piece)
    print(piece, end="", flush=True)
