"""Tasks that need no network: a module per family, each of which fills `registry.TASKS`."""

from importlib import import_module

from .registry import TASKS, config, task

# Imported for their rows; none of them imports torch, datasets or lm_eval before a task is built.
_FAMILIES: tuple[str, ...] = ("choices", "texts", "code", "recall")
for _name in _FAMILIES:
    import_module(f".{_name}", __name__)

__all__ = ["TASKS", "config", "task"]
