"""Names of devices mean what this machine has."""

from __future__ import annotations

import pytest
import torch

from linearize import device
from linearize.errors import UsageError


def test_auto_is_the_accelerator_or_the_cpu() -> None:
    expected = "cuda" if torch.cuda.is_available() else ("mps", "cpu")
    assert device.pick("auto").type in expected
    assert device.pick("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_what_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        device.pick(name)


def test_auto_dtype_is_the_checkpoint_s_unless_the_cpu_is_slow_in_it() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert device.dtype("auto", torch.bfloat16, cuda) == torch.bfloat16
    assert device.dtype("auto", torch.bfloat16, cpu) == torch.float32
    assert device.dtype("float16", torch.bfloat16, cpu) == torch.float16


def test_a_machine_has_memory_and_a_name() -> None:
    here = device.pick()
    assert device.memory(here) > 2**28
    assert device.describe(here)
