"""Whether a generated text contains an answer: the metric of the JRT tasks."""

from __future__ import annotations

import re
from collections.abc import Iterable


def contains(prediction: str, answers: Iterable[str]) -> bool:
    """Whether any answer occurs in the prediction, letter case aside.

    The answers are literal strings. Matches inside words count, as in the authors' harness.
    """
    return any(re.search(re.escape(answer), prediction, re.IGNORECASE) for answer in answers)
