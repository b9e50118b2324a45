"""Plain greedy decoding, in the words of transformers' `generate`."""

from __future__ import annotations

from typing import Any

# Spelt out, because what is left out is filled in from the model's own defaults.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,  # transformers' neutral value when nothing is drawn
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
