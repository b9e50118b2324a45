"""A complete `result.json` of an invented run, for tests of what is written from it."""

RESULT = {
    "base": {
        "name": "someone/small-llama",
        "model_type": "llama",
        "hash": "ab12" * 16,
        "license": "MIT",
        "parameters": 260_032,
    },
    "spec": {
        "gate": "gla",
        "window": 64,
        "mix": "learned",
        "mix_weight": 0.5,
        "gate_normalizer": None,
        "keep_softmax": [],
    },
    "recipe": {"base": "someone/small-llama", "liger": {"window": 64}, "training": {"tokens": 700}},
    "data": {
        "source": "stories/*.txt",
        "documents": 1234,
        "train_tokens": 900_000,
        "eval_tokens": 50_000,
    },
    "losses": {
        "teacher": 1.30,
        "student": 1.305,
        "window_only": 1.36,
        "before": 1.37,
        "window_only_trained": None,
    },
    "perplexity_ratio": 1.00501,
    "loss_by_position": {
        "edges": [0, 16, 64, 256, 512],
        "teacher": [2.1, 1.4, 1.2, 1.15],
        "student": [2.1, 1.4, 1.21, float("nan")],
        "window_only": [2.1, 1.4, 1.3, 1.31],
    },
    "steps": 170,
    "tokens": 700_000,
    "seconds": 95.0,
    "trained_parameters": 13_000,
    "total_parameters": 273_032,
    "state_bytes": {"recurrent": 5120, "window": 20160, "total": 25280},
    "kv_bytes_per_token": 320,
    "mix": {"0": [0.0, 0.1, -0.2, 0.05], "1": [0.3, 0.2, 0.1, 0.0]},
    "checks": [
        {"name": "decode equals full forward", "value": 3e-6, "limit": 1e-4, "passed": True},
        {"name": "reloaded equals saved", "value": 0.0, "limit": 0.0, "passed": True},
    ],
    "versions": {"linearize": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "device": "cpu",
}
