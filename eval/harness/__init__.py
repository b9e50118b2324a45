"""The harness: lm-eval's tasks over every model and sampler of this package.

`evaluate` needs lm-eval; importing this package does not.
"""

from linearize.errors import InputError

from .run import evaluate


def require() -> None:
    """Raises `InputError` if lm-eval is not installed."""
    from importlib.util import find_spec

    if not all(find_spec(name) for name in ("lm_eval", "datasets")):
        raise InputError('this needs lm-eval: pip install "linearize[eval]"')


__all__ = ["evaluate", "require"]
