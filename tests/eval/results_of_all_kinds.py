"""Invented results of every kind that a report takes, as the commands write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results import RESULT

METRICS = [{"step": i, "tokens": 4096 * i, "loss": 1.4 - i / 500} for i in range(1, 30)]
SAMPLES = [{"prompt": "Once", "teacher": "upon a time", "student": "upon a <b>hill</b>"}]
FINETUNED = {
    **{key: RESULT[key] for key in ("base", "recipe", "data", "steps", "tokens", "seconds")},
    **{key: RESULT[key] for key in ("trained_parameters", "total_parameters", "checks")},
    **{key: RESULT[key] for key in ("versions", "device")},
    "losses": {"before": 1.685, "after": 1.6808},
    "measured": {"before": {"rep-4": 0.27}, "after": {"rep-4": 0.13}},
    "spec": None,
}
RECALL = {
    "models": {},
    "rows": [
        {
            "name": name,
            "task": "pairs",
            "words": words,
            "tokens": 7.5 * words,
            "accuracy": right - words / 100,
            "stderr": 0.0321,
            "items": 200,
        }
        for name, right in (("teacher", 0.995), ("Liger", 0.805))
        for words in (8, 16, 32)
    ],
    "means": {"teacher": {"pairs": 0.8, "all": 0.8}, "Liger": {"pairs": 0.6, "all": 0.6}},
    "seconds": 3.0,
}
REPETITION = {
    "suite": "repetition",
    "versions": {"torch": "2.13.0"},
    "settings": {"model": "embedded", "seed": 0, "ways": {}},
    "groups": [
        {
            "name": "prose",
            "language": None,
            "prompts": 12,
            "ways": {"greedy": {"rep-4": 0.8466, "egp": 0.1}, "rpg": {"rep-4": 0.5525}},
            "over_length": {
                "edges": [0, 32, 64],
                "rep-4": {"greedy": [0.5, 0.9], "rpg": [0.4, None]},
            },
            "self_reinforcement": {
                "tp": [0.2, 0.5],
                "ip": [0.0, 0.9],
                "wr": [0.0, 0.6],
                "units": 9,
            },
        }
    ],
    "broken": 0,
}
BENCH = {
    "bench": "prefill",
    "title": "reading prompts with tiny",
    "machine": {"torch": "2.13.0", "device": "a processor", "threads": 2},
    "limits": {"copy": 12.5e9, "matrix": 0.061e12, "dtype": "float32"},
    "records": [
        {
            "length": length,
            "cache_bytes": {"base": 512 * length, "converted": 36_400},
            "operations": {"base": 10**6 * length, "converted": 10**6 * length},
            "peak_bytes": {"base": 3000 * length, "converted": 5000 * length},
            "seconds": {"base": length / 12_345, "converted": length / 10_000},
            "of_matrix": {"base": 0.2, "converted": 0.19},
        }
        for length in (128, 512)
    ],
}


def evaluation(model: str, score: float, **about: Any) -> dict[str, Any]:
    """What `linearize eval --tasks local_piqa,local_passkey` writes, shortened."""
    return {
        "results": {
            "local_piqa": {"alias": "x", "acc,none": score, "acc_stderr,none": 0.0112},
            "local_passkey": {"contains,none": score / 2, "contains_stderr,none": "N/A"},
        },
        "configs": {
            "local_passkey": {"metadata": {"parameters": {"length": about.pop("length", 512)}}}
        },
        "n-shot": {"local_piqa": 0, "local_passkey": 0},
        "n-samples": {"local_piqa": {"effective": 1838, "original": 1838}},
        "higher_is_better": {"local_piqa": {"acc": True}},
        "linearize": {
            "model": model,
            "hash": "cd34",
            "dtype": "float32",
            "sampler": "greedy",
            "jrt": 1,
            "spec": None,
            "versions": {"lm_eval": "0.4.13"},
        }
        | about,
    }


TEACHER = evaluation("someone/small-llama", 0.7541, hash=RESULT["base"]["hash"])
STUDENT = evaluation("out/student", 0.7312, spec={"gate": "gla"})
LONGER = evaluation("out/student", 0.7002, spec={"gate": "gla"}, length=1024)


def write(folder: Path) -> list[Path]:
    """One directory or file of each kind; returns what to give to the commands."""
    runs = {"conversion": RESULT, "tuned": FINETUNED}
    evaluations = {"teacher-eval": TEACHER, "student-eval": STUDENT, "longer-eval": LONGER}
    others = {"recall": RECALL, "repetition": REPETITION}
    for name, values in {**runs, **evaluations, **others}.items():
        (folder / name).mkdir()
        file = "result.json" if name in runs else "results.json"
        (folder / name / file).write_text(json.dumps(values))
    for name in runs:
        (folder / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, METRICS)))
    (folder / "conversion" / "samples.json").write_text(json.dumps(SAMPLES))
    (folder / "prefill.json").write_text(json.dumps(BENCH))
    return [*(folder / name for name in {**runs, **evaluations, **others}), folder / "prefill.json"]
