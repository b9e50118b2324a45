"""A few rows times weights in C: the operation against torch's product, plain and compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linearize.ops.native import linear

pytestmark = pytest.mark.skipif(linear.operation() is None, reason="not built here")


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, linear.MOST),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 90),
    threads=st.sampled_from([1, 2, 5]),
)
def test_it_is_the_product_whatever_the_threads(rows, inputs, outputs, threads) -> None:
    make = torch.Generator().manual_seed(inputs * outputs)
    x, w = torch.randn(rows, inputs + 3, generator=make)[:, 3:], torch.randn(outputs, inputs)
    assert linear.takes(x, w)
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, threads):
            torch.set_num_threads(n)
            found.append(linear.operation()(x, w))
    finally:
        torch.set_num_threads(before)
    assert found[0].shape == (rows, outputs)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0].double(), x.double() @ w.double().T, atol=1e-4, rtol=1e-5)


def test_what_it_does_not_take() -> None:
    x, w = torch.randn(2, 8), torch.randn(5, 8)
    assert linear.takes(x, w)
    assert not linear.takes(torch.randn(linear.MOST + 1, 8), w), "too many rows"
    assert not linear.takes(x, torch.randn(8, 5).t()), "weights that lie otherwise"
    assert not linear.takes(torch.randn(8, 2).t(), w)
    assert not linear.takes(x.double(), w.double())
    assert not linear.takes(x[None], w)


def test_memory_is_given_back() -> None:
    x, w = torch.randn(1, 64), torch.randn(4096, 64)
    with torch.profiler.profile(profile_memory=True) as seen:
        for _ in range(4):
            linear.operation()(x, w)
    kept = sum(event.self_cpu_memory_usage for event in seen.key_averages())
    assert abs(kept) < 4096, f"{kept} bytes of four outputs of {4096 * 4} are still alive"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about its own parts
def test_compiled_graphs_call_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    operation = linear.operation()
    x, w = torch.randn(1, 48), torch.randn(33, 48)

    def graph(x, w):
        return operation(x.relu(), w).relu()

    with torch.no_grad():
        made = torch.compile(graph, options={"cpp_wrapper": True})
        torch.testing.assert_close(made(x, w), graph(x, w))
    code = "".join(path.read_text() for path in tmp_path.rglob("*.main.cpp"))
    assert "linearize::linear" in code, "through the dispatcher, not through Python"


WITHOUT = """
from linearize.ops.native import linear
import torch
print(linear.operation(), linear.takes(torch.ones(1, 2), torch.ones(2, 2)))
"""


def test_without_a_compiler_there_is_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, "LINEARIZE_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None False\n"
