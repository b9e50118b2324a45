"""`decode --jrt N --question TEXT`: the prompt is a document, read N times before the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linearize.errors import InputError

from ._decode_chat import messages
from ._decode_session import Session
from ._decode_settings import Settings


@dataclass(frozen=True)
class Start:
    """What is continued: text, or ids where a chat template is applied.

    `told`: what JSON says about reading it, {} for an ordinary prompt; `extra_tokens`: read again.
    """

    prompt: str | list[int]
    told: dict[str, Any]
    extra_tokens: int = 0


@dataclass(frozen=True)
class Reading:
    """How prompts are read. Without a question all of a prompt is repeated.

    - `chat`: in the model's chat template, after `system`: only the user's message is repeated.
    """

    times: int = 1
    question: str = ""
    chat: bool = False
    system: str | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What of it decides a text, as JSON tells it; {} for ordinary prompts."""
        if self.times == 1 and not self.question:
            return {}
        return {"jrt": self.times, "question": self.question}

    def start(self, session: Session, prompt: Any, settings: Settings) -> Start:
        """A prompt as it is read. Where it is to be truncated, the document is, before it is read.

        Raises `InputError` for token ids where text is needed, and as `Session.chat` does.
        """
        if not isinstance(prompt, str):
            wanted = [f for f, on in (("--chat", self.chat), ("--jrt", self.told)) if on]
            if wanted:
                raise InputError(f"{wanted[0]} needs text, not token ids")
            return Start(prompt, {})
        if not self.told:
            return Start(self._in_template(session, prompt), {})
        from linearize.decoding import jrt
        from linearize.decoding.encode import positions

        def whole(document: str, times: int = self.times) -> str | list[int]:
            repeated = jrt.repeat(document, self.question, times)
            return self._in_template(session, repeated)

        def length(document: str, times: int = self.times) -> int:
            return len(self._ids(session, whole(document, times)))

        limit, _ = positions(session.model)
        if settings.truncate == "left" and limit is not None:
            prompt = jrt.fitted(
                session.tokenizer,
                prompt,
                room=limit - settings.max_new_tokens,
                length=length,
                times=self.times,
            )
        read = length(prompt)
        extra = read - length(prompt, 1)
        return Start(
            whole(prompt), {"jrt": {**self.told, "tokens": read, "extra_tokens": extra}}, extra
        )

    def _in_template(self, session: Session, text: str) -> str | list[int]:
        return session.chat(messages(self.system, text)) if self.chat else text

    @staticmethod
    def _ids(session: Session, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return session.tokenizer(prompt, verbose=False).input_ids
        return prompt


def cost(start: Start, result: Any) -> dict[str, Any]:
    """What reading again took: `start.told` with the seconds, as far as they are known."""
    if not start.told:
        return {}
    from linearize.decoding.jrt import Cost

    told, first = start.told["jrt"], result.first_token_seconds
    seconds = None
    if first is not None:
        seconds = Cost(told["jrt"], told["tokens"], start.extra_tokens).seconds(first)
    return {"jrt": {**told, "first_token_seconds": first, "extra_seconds": seconds}}


def cost_line(start: Start, result: Any) -> str:
    """The same for a person, or an empty string."""
    if not start.extra_tokens:
        return ""
    told = cost(start, result)["jrt"]
    line = f"read {told['jrt']} times: {start.extra_tokens} of {told['tokens']} prompt tokens"
    if told["extra_seconds"] is None:
        return line
    return (
        f"{line} and about {told['extra_seconds']:.2f} of {told['first_token_seconds']:.2f} s "
        "before the first new one"
    )
