"""A model in parts in two processes over gloo: the same run, and a whole model after it."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import be_one_of_two, small_model, small_rows, small_settings, trained
from test_processes import RUN, check_equal, codes, errors, in_two
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from linearize import LigerSpec, apply
from linearize.conversion import _teacher
from linearize.errors import Interrupted, LinearizeError, UsageError
from linearize.job import with_adapters
from linearize.recipe import Recipe, RecurrenceSettings
from linearize.training import evaluate, objectives
from linearize.training.loop import train
from linearize.training.sharding import is_sharded

SHARDED = {**RUN, "shard": True}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    trained(run_dir, **RUN)
    return run_dir


def test_a_sharded_run_equals_one_process_that_accumulates(tmp_path, alone):
    both = in_two(tmp_path / "run", **SHARDED, gradient_checkpointing=True)
    assert codes(both) == [0, 0]
    check_equal(tmp_path / "run", alone)


def test_started_in_parts_and_continued_whole(tmp_path, alone):
    both = in_two(tmp_path / "run", **SHARDED, stop_at=3)
    assert codes(both) == [Interrupted.exit_code] * 2, errors(tmp_path / "run")
    trained(tmp_path / "run", resume=True, **RUN)
    check_equal(tmp_path / "run", alone)


def test_started_whole_and_continued_in_parts(tmp_path, alone):
    def stop(record):
        if record["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", on_step=stop, **RUN)
    assert codes(in_two(tmp_path / "run", resume=True, **SHARDED)) == [0, 0]
    check_equal(tmp_path / "run", alone)


def distilled(run_dir, **changes) -> None:
    """Two runs, one after the other, of one model with LoRA and a teacher; frozen in bfloat16.

    The weights afterwards go to a file, and so do held-out losses of the model that is whole again.
    """
    lora = Recipe(lora={"rank": 4, "targets": ["q_proj", "v_proj", "o_proj"]})
    torch.manual_seed(0)
    model = apply(small_model().to(torch.bfloat16), LigerSpec(window=8))
    model = with_adapters(model, lora, modules_to_save=["mix"])
    kinds = [type(module) for module in model.modules()]
    settings = small_settings(
        2, accumulate=2, objective={"distill": 1.0}, dtype="float32", learning_rate=1e-2, **changes
    )
    seen = []
    for number in (1, 2):
        train(
            model,
            small_rows(),
            settings=settings,
            run_dir=run_dir / str(number),
            teacher=_teacher(model),
            evaluate=lambda m: seen.append(parts(m)) or 0.0,
        )
    expected = settings.shard and "RANK" in os.environ
    assert all(any_shared == expected for any_shared in seen)
    assert [type(module) for module in model.modules()] == kinds
    assert not is_sharded(model)
    assert not any(isinstance(p, DTensor) for p in model.parameters())
    losses = evaluate.token_losses(model, small_rows(3), batch_size=2)
    if os.environ.get("RANK", "0") == "0":
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        save_file(weights | {"losses": losses.nan_to_num()}, run_dir / "after.safetensors")


def parts(model) -> bool:
    """Whether each weight of the model's layers is in parts."""
    layers = [p for n, p in model.named_parameters() if ".layers." in n]
    shared = [isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in layers]
    assert all(shared) or not any(shared)
    return all(shared)


def distilled_in_two(rank, port, run_dir, **changes) -> None:
    be_one_of_two(rank, port)
    try:
        distilled(run_dir, **changes)
        torch.distributed.destroy_process_group()
    except LinearizeError as error:
        run_dir.with_name(f"error-{rank}.txt").write_text(str(error))
        os._exit(error.exit_code)


def test_adapters_and_teacher_are_shared_too_and_the_model_is_whole_afterwards(tmp_path):
    distilled(tmp_path / "alone")
    (tmp_path / "run").mkdir()
    both = in_two(tmp_path / "run", distilled_in_two, shard=True)
    assert codes(both) == [0, 0]
    ours, theirs = (load_file(tmp_path / n / "after.safetensors") for n in ("run", "alone"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        # bfloat16 activations: gradients of two rows at once or apart differ in the last places
        assert_close(ours[name], tensor, rtol=2e-2, atol=2e-3, msg=name)


def test_a_model_that_one_process_has_is_not_shared(tmp_path, alone):
    trained(tmp_path / "run", **SHARDED)
    check_equal(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("changes", "recurrence", "told"),
    [
        ({"objective": {"masked_prefix": 1.0}}, None, "prefix encoder"),
        ({"objective": {"align": 1.0}}, None, "calls attention layers"),
        ({"dtype": "float16"}, None, "float16 scales"),
        ({}, RecurrenceSettings(), "looped models"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path, changes, recurrence, told):
    settings = small_settings(**{"shard": True, **changes})
    assert set(settings.objective) <= set(objectives.OBJECTIVES)
    with pytest.raises(UsageError, match=rf"training\.shard=true .*{told}"):
        train(
            small_model(),
            small_rows(),
            settings=settings,
            run_dir=tmp_path / "run",
            recurrence=recurrence,
        )
