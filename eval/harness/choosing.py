"""How tokens are chosen in generation tasks: what the model's arguments and the task ask for."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from linearize.errors import UsageError, suggest

_log = logging.getLogger(__name__)
# Of a task's generation settings -> option of the sampler `sample`.
_DRAWING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
_DRAWING["typical_p"] = "typical"
_KNOWN = {*_DRAWING, "do_sample", "num_beams", "length_penalty", "early_stopping"}


class Choice:
    """A sampler and remedies with their options.

    Args:
        sampler: names joined by +, at most one sampler among them, as in "sample+rpg"; None leaves
            the sampler to the task (greedy, unless the task draws).
        options: of the sampler by their own names, or NAME.KEY for any of the names.

    Raises `UsageError` for what does not exist or is out of range.
    """

    def __init__(self, sampler: str | None, options: Mapping[str, Any]) -> None:
        from linearize.decoding import remedies, sampling

        names = [name.strip() for name in (sampler or "").split("+") if name.strip()]
        known = [*sampling.SAMPLERS, *remedies.REMEDIES]
        for name in names:
            if name not in known:
                raise UsageError(f"there is no sampler or remedy '{name}'{suggest(name, known)}")
        chosen = [name for name in names if name in sampling.SAMPLERS]
        if len(chosen) > 1:
            raise UsageError(f"{sampler} names {len(chosen)} samplers; one chooses a token")
        self.sampler = chosen[0] if chosen else None
        self.remedies: dict[str, dict[str, Any]] = {n: {} for n in names if n not in chosen}
        self.options: dict[str, Any] = {}
        self._told: set[str] = set()
        own = _options_of(self.sampler)
        for key, value in options.items():
            name, dot, inner = key.partition(".")
            if dot and name in self.remedies:
                self.remedies[name][inner] = value
            elif dot and name == self.sampler:
                self.options[inner] = value
            elif not dot and key in own:
                self.options[key] = value
            else:
                near = suggest(key, [*own, *(f"{n}." for n in names)])
                raise UsageError(
                    f"the model argument '{key}' is not known, nor an option of what is used here"
                    f"{near}"
                )
        if self.sampler is not None:
            sampling.make(self.sampler, **self.options)

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raises `UsageError` or `InputError` if they cannot run with this model."""
        from linearize.decoding import remedies, sampling

        remedies.make(self.remedies, tokenizer)
        if self.sampler is not None:
            sampling.check_model(self.sampler, model)

    def arguments(self, of_task: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of `generate` for a task's generation settings.

        A sampler named by the model's arguments decides; else the task's settings do.
        """
        for key in sorted({*of_task} - _KNOWN - self._told):
            self._told.add(key)
            _log.warning("the task's generation setting %s=%r is not used", key, of_task[key])
        if self.sampler is not None:
            return {"sampler": self.sampler, **self.options, "remedies": self.remedies}
        if (of_task.get("num_beams") or 1) > 1:
            keys = ("num_beams", "length_penalty", "early_stopping")
            values = {key: of_task[key] for key in keys if key in of_task}
            return {"sampler": "beam", **values, "remedies": self.remedies}
        temperature = of_task.get("temperature")
        if of_task.get("do_sample", bool(temperature)) and temperature != 0:
            values = {own: of_task[key] for key, own in _DRAWING.items() if key in of_task}
            return {"sampler": "sample", **values, "remedies": self.remedies}
        return {"sampler": "greedy", "remedies": self.remedies}

    def record(self) -> dict[str, Any]:
        """What of it decides a text, as plain JSON types."""
        return {
            "sampler": self.sampler or "as the task says",
            "options": self.options,
            "remedies": self.remedies,
        }


def _options_of(sampler: str | None) -> list[str]:
    from linearize.decoding.sampling import SAMPLERS

    return list(inspect.signature(SAMPLERS[sampler]).parameters) if sampler else []
