"""Published scores of linearized models, as reference rows of a comparison.

Percentages, zero-shot but for MMLU (5-shot). arXiv:2503.01496 is the Liger paper, with its own rows
and those it took or measured; its LoLCATs rows are a rerun far below what LoLCATs reports itself
(arXiv:2410.10254), so that both are here. arXiv:2505.03005 is the RADLADS paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Column -> (task, metric, examples in the prompt, share of right answers by chance).
TASKS = {
    "PIQA": ("piqa", "acc", 0, 0.5),
    "ARC-e": ("arc_easy", "acc", 0, 0.25),
    "ARC-c": ("arc_challenge", "acc_norm", 0, 0.25),
    "HellaSwag": ("hellaswag", "acc_norm", 0, 0.25),
    "WinoGrande": ("winogrande", "acc", 0, 0.5),
    "MMLU": ("mmlu", "acc", 5, 0.25),
}
OTHERS = ("PIQA", "ARC-e", "ARC-c", "HellaSwag", "WinoGrande")  # the mean without MMLU


@dataclass(frozen=True)
class Row:
    """`scores` in percent by column; `tokens`: what was trained on, in billions."""

    model: str
    tokens: str
    scores: Mapping[str, float]
    source: str


_LIGER = "arXiv:2503.01496"
_LOLCATS = "arXiv:2410.10254"
_RADLADS = "arXiv:2505.03005"


def _row(model: str, tokens: str, values: tuple[float, ...], source: str = _LIGER) -> Row:
    return Row(model, tokens, dict(zip(TASKS, values, strict=True)), source)


ROWS = (
    _row("Mistral-7B", "8000", (80.6, 80.7, 53.9, 81.1, 74.3, 62.6)),
    _row("SUPRA, Mistral-7B", "100", (80.4, 75.9, 45.8, 77.1, 70.3, 34.2)),
    _row("LoLCATs, Mistral-7B, rerun", "0.04", (79.7, 78.4, 47.4, 58.4, 71.0, 23.7)),
    _row(
        "LoLCATs, Mistral-7B",
        "0.04",
        (81.5, 81.7, 54.9, 80.7, 74.0, 51.4),
        _LOLCATS,
    ),
    _row("Liger-GLA, Mistral-7B", "0.02", (80.1, 78.7, 49.3, 76.3, 70.1, 36.3)),
    _row("Llama-3-8B", "15000", (79.4, 80.1, 53.2, 79.2, 72.9, 65.3)),
    _row("SUPRA, Llama-3-8B", "20", (78.9, 75.1, 46.5, 71.7, 65.8, 40.9)),
    _row("MambaInLlama, no attention", "20", (76.8, 74.1, 48.0, 70.8, 58.6, 43.2)),
    _row("MambaInLlama, half attention", "20", (81.5, 78.8, 58.2, 79.5, 71.5, 56.7)),
    _row("LoLCATs, Llama-3-8B, rerun", "0.04", (80.1, 80.4, 53.5, 63.4, 72.9, 42.1)),
    _row(
        "LoLCATs, Llama-3-8B",
        "0.04",
        (80.9, 81.7, 54.9, 79.7, 74.1, 52.8),
        _LOLCATS,
    ),
    _row("Liger-GLA, Llama-3-8B", "0.02", (80.3, 81.1, 52.5, 76.3, 72.0, 43.4)),
    _row("Liger-GLA-H, Llama-3-8B", "0.02", (80.6, 80.7, 52.7, 76.9, 71.4, 44.4)),
    _row("Liger-HGRN2, Llama-3-8B", "0.02", (79.2, 76.8, 48.5, 74.4, 68.8, 36.2)),
    _row("Liger-GSA, Llama-3-8B", "0.02", (79.5, 78.5, 49.4, 74.5, 70.5, 41.2)),
    _row("Llama-3.2-1B", "", (74.1, 65.4, 36.4, 63.8, 60.0, 31.0)),
    _row("LoLCATs, Llama-3.2-1B, rerun", "0.04", (74.1, 63.7, 36.4, 51.2, 58.2, 23.1)),
    _row("Liger-GLA, Llama-3.2-1B", "0.02", (75.0, 65.4, 35.7, 59.8, 59.1, 22.4)),
    _row("Llama-3.2-3B", "", (76.4, 74.7, 46.0, 73.6, 69.9, 56.2)),
    _row("LoLCATs, Llama-3.2-3B, rerun", "0.04", (76.7, 72.0, 42.3, 51.9, 66.9, 23.6)),
    _row("Liger-GLA, Llama-3.2-3B", "0.02", (77.9, 74.0, 43.9, 70.3, 66.3, 32.1)),
)
# What is left of the teacher above chance, (student - chance) / (teacher - chance), in percent.
MMLU, MEAN = "MMLU", "mean of the five others"
KEPT = (
    Row("Liger-GLA, Llama-3-8B", "0.02", {MMLU: 46, MEAN: 99}, f"computed from {_LIGER}"),
    Row("Liger-GLA, Mistral-7B", "0.02", {MMLU: 30, MEAN: 91}, f"computed from {_LIGER}"),
    Row("LoLCATs, Llama-3.1-8B", "0.04", {MMLU: 72.7}, _RADLADS),
    Row("LoLCATs, Mistral-7B", "0.04", {MMLU: 70.6}, _RADLADS),
    Row("SUPRA, Mistral-7B", "100", {MMLU: 21.6, MEAN: 86.9}, _RADLADS),
    Row("MambaInLlama, no attention", "20", {MMLU: 51.9, MEAN: 75.7}, _RADLADS),
    Row("MambaInLlama, half attention", "20", {MMLU: 78.9}, _RADLADS),
    Row("RADLADS, QRWKV7 7B", "0.35-0.7", {MMLU: 92.4, MEAN: 101.3}, _RADLADS),
)
