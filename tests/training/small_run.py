"""A small real run, also for child processes: stories260K if it is there, else a tiny Llama."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from linearize.errors import LinearizeError
from linearize.recipe import TrainingSettings
from linearize.training.evaluate import token_losses
from linearize.training.loop import TrainResult, train
from linearize.training.packing import Rows

SEQ_LEN = 32


def small_model(*, dropout: float = 0.0) -> PreTrainedModel:
    """A Llama of 0.3 M parameters with 512 tokens; dropout makes steps depend on random numbers."""
    shared = Path(os.environ.get("LINEARIZE_SHARED", Path(__file__).parents[3] / "shared"))
    trained = shared / "data/models/stories260K"
    if trained.is_dir():
        return AutoModelForCausalLM.from_pretrained(trained, attention_dropout=dropout)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        attention_dropout=dropout,
    )
    return LlamaForCausalLM(config)


def small_rows(count: int = 24, *, boundaries: bool = True) -> Rows:
    """Rows with documents of uneven length; a language of few words, so that it can be learned."""
    random = np.random.default_rng(0)
    tokens = random.integers(10, 30, count * SEQ_LEN - 5).astype(np.int32)
    starts = np.arange(0, len(tokens), 27)
    return Rows(tokens, starts, SEQ_LEN, boundaries)


def small_settings(steps: int = 8, **changes: Any) -> TrainingSettings:
    """`steps` optimizer steps of two rows."""
    values = {"batch_size": 2, "objective": {"next_token": 1.0}, "checkpoint_every": 3} | changes
    rows = values["batch_size"] * values.get("accumulate", 1)
    return TrainingSettings(tokens=steps * rows * SEQ_LEN, **values)


def go(
    run_dir: Path,
    *,
    steps: int = 8,
    resume: bool = False,
    weights: Path | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    **changes: Any,
) -> tuple[PreTrainedModel, TrainResult]:
    """Train the small model; its final weights go to a file, for runs in another process."""
    torch.set_num_threads(1)
    model = small_model(dropout=0.1)
    settings = small_settings(steps, **changes)
    result = train(
        model, small_rows(), settings=settings, run_dir=run_dir, resume=resume, on_step=on_step
    )
    if weights is not None:
        torch.save(model.state_dict(), weights)
    return model, result


def children() -> multiprocessing.context.ForkServerContext:
    """Processes that start in a fraction of a second: everything is imported before they fork."""
    context = multiprocessing.get_context("forkserver")
    llama = "transformers.models.llama.modeling_llama"
    context.set_forkserver_preload(["small_run", "torch.utils.tensorboard", llama])
    return context


def one_of_two(
    rank: int,
    port: int,
    run_dir: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    other_text: bool = False,
    **changes: Any,
) -> None:
    """Process `rank` of a run in two processes, as `torchrun --nproc_per_node 2` starts them.

    What it raised is in `error-RANK.txt`. `stop_at`: the first gets a SIGTERM after this step.
    `other_text`: the second reads fewer rows.
    """
    be_one_of_two(rank, port)

    def on_step(record: dict[str, Any]) -> None:
        if record["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        trained(run_dir, small_rows(20 if other_text and rank else 24), resume, on_step, **changes)
        torch.distributed.destroy_process_group()
    except LinearizeError as error:
        text = f"{type(error).__name__}: {error}"
        run_dir.with_name(f"error-{rank}.txt").write_text(text)
        os._exit(error.exit_code)  # without waiting for the other


def be_one_of_two(rank: int, port: int) -> None:
    """What `torchrun --nproc_per_node 2` tells process `rank`."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)


def trained(
    run_dir: Path,
    rows: Rows | None = None,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    **changes: Any,
) -> TrainResult:
    """A run with dropout whose held-out loss all processes measure together."""
    return train(
        small_model(dropout=0.1),
        rows or small_rows(),
        settings=small_settings(**changes),
        run_dir=run_dir,
        resume=resume,
        on_step=on_step,
        evaluate=lambda model: (
            token_losses(model, small_rows(5), batch_size=2, shared=True).double().nanmean().item()
        ),
    )
