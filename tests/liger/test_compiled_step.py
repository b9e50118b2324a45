"""A decode step over a static cache is one graph, and computes what the plain step does."""

from __future__ import annotations

import shutil

import pytest
import torch
from models import converted, tokens
from transformers import StaticCache


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about its own parts
def test_the_compiled_step_is_one_graph_and_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    model = converted("llama", window=16)
    step = torch.compile(model.forward, fullgraph=True)
    ids, found = tokens(1, 60), []
    with torch.no_grad():
        for run in (model, step):
            cache = StaticCache(config=model.config, max_cache_len=64)
            model(input_ids=ids[:, :40], past_key_values=cache, use_cache=True)
            logits = []
            for t in range(40, 60):
                how = {"position_ids": torch.tensor([[t]]), "use_cache": True}
                logits.append(run(input_ids=ids[:, t : t + 1], past_key_values=cache, **how).logits)
            found.append(torch.cat(logits, 1))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2, "one per step otherwise"
