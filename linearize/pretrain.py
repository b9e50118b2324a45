"""Tokenizer and model from scratch, from one recipe: a Llama, or a looped model.

    python -m linearize.pretrain --recipe embedded|looped --out DIR [--resume]

Data, packing, loop and checkpoints are those of conversions.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tokenizers
import torch
import transformers
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from . import recipe
from .errors import LinearizeError, UsageError
from .output import OutputDirectory
from .recipe import DataSettings, RecurrenceSettings, TrainingSettings
from .training import answer_rows, corpora, data
from .training.evaluate import loss_by_position, loss_by_recurrences, mean_loss, token_losses
from .training.loop import train
from .training.packing import Rows, build_rows
from .training.tokenizer import train_bpe


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LlamaSettings(_Strict):
    """Shape of the Llama; names and meaning are those of `LlamaConfig`."""

    architecture: Literal["llama"] = "llama"
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    intermediate_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=2)
    initializer_range: float = Field(0.02, gt=0)
    tie_word_embeddings: bool = True
    embedding_range: float | None = Field(None, gt=0)  # of the embeddings; None = as all weights

    @property
    def context(self) -> int:
        return self.max_position_embeddings


class RavenSettings(_Strict):
    """Shape of the looped model; names and meaning are those of `RavenConfig`."""

    architecture: Literal["huginn_raven"]
    n_embd: int = Field(ge=2)
    n_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    n_layers_in_prelude: int = Field(ge=0)
    n_layers_in_recurrent_block: int = Field(ge=1)
    n_layers_in_coda: int = Field(ge=0)
    block_size: int = Field(ge=2)
    mean_recurrence: int = Field(ge=1)
    mean_backprop_depth: int = Field(ge=1)
    rope_base: float = Field(10_000.0, gt=0)
    tie_embeddings: bool = True

    @property
    def context(self) -> int:
        return self.block_size


def _architecture(settings: Any) -> str:
    if isinstance(settings, dict):
        return settings.get("architecture", "llama")
    return settings.architecture


AnyModel = Annotated[
    Annotated[LlamaSettings, Tag("llama")] | Annotated[RavenSettings, Tag("huginn_raven")],
    Discriminator(_architecture),
]


class TokenizerSettings(_Strict):
    """Byte-level BPE, trained on the training documents."""

    vocab_size: int = Field(ge=259)


class Stage(_Strict):
    """What differs from the recipe's `data` and `training` in one stretch of the run."""

    data: dict[str, Any] = {}
    training: dict[str, Any] = {}


class PretrainRecipe(_Strict):
    """Everything `python -m linearize.pretrain` needs."""

    model: AnyModel
    tokenizer: TokenizerSettings
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings(objective={"next_token": 1.0})
    recurrence: RecurrenceSettings | None = None  # of a looped model; the ramp is that of a stage
    stages: list[Stage] = Field([Stage()], min_length=1)

    def stage(self, index: int) -> tuple[DataSettings, TrainingSettings]:
        """Settings of one stage."""
        stage = self.stages[index]
        return (
            DataSettings(**self.data.model_dump() | stage.data),
            TrainingSettings(**self.training.model_dump() | stage.training),
        )

    @model_validator(mode="after")
    def _stages_are_valid(self) -> PretrainRecipe:
        for index in range(len(self.stages)):
            row, context = self.stage(index)[0].seq_len, self.model.context
            if row > context:
                raise ValueError(f"rows of {row} tokens exceed the model's context of {context}")
        if (self.recurrence is not None) != isinstance(self.model, RavenSettings):
            raise ValueError("'recurrence' belongs to a looped model, and to no other")
        return self


def load(name_or_path: str) -> PretrainRecipe:
    """Read and validate. Raises `InputError` if there is none, `UsageError` naming a wrong key."""
    try:
        return PretrainRecipe.model_validate(recipe.read(name_or_path))
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise UsageError(
            f"recipe {name_or_path} does not describe a model: {'; '.join(wrong)}; "
            "see the recipe 'embedded'"
        ) from error


def pretrain(settings: PretrainRecipe, out: Path, *, resume: bool = False) -> Path:
    """Train tokenizer and model, and save them in bfloat16 with `pretraining.json`.

    Returns `out`, which appears when everything is done; until then the run is in `out.partial`,
    where `resume` continues it. Raises what `build_rows`, `train` and `OutputDirectory` raise.
    """
    with OutputDirectory(out, resume=resume) as directory:
        directory.keep = True
        began = time.perf_counter()
        torch.manual_seed(settings.training.seed)
        texts = (text for held_out, text in data.split(settings.data) if not held_out)
        size, context = settings.tokenizer.vocab_size, settings.model.context
        tokenizer = train_bpe(texts, vocab_size=size, context=context)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                settings.model.architecture,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **settings.model.model_dump(exclude={"architecture", "embedding_range"}),
            )
        )
        if scale := getattr(settings.model, "embedding_range", None):
            torch.nn.init.normal_(model.get_input_embeddings().weight, std=scale)
        budgets = [settings.stage(i)[1].tokens for i in range(len(settings.stages))]
        seconds = 0.0
        for index in range(len(settings.stages)):
            row_settings, train_settings = settings.stage(index)
            # All stages draw from the text that the whole budget needs.
            rows, held_out, packed = build_rows(row_settings, tokenizer, sum(budgets))
            if row_settings.prompt_field:
                rows = answer_rows.build(row_settings, tokenizer, sum(budgets))
            size = train_settings.batch_size
            result = train(
                model,
                rows,
                settings=train_settings,
                run_dir=directory.path / f"stage-{index + 1}",
                recurrence=settings.recurrence,
                evaluate=lambda model, rows=held_out, size=size: _loss(model, rows, size),
                resume=resume,
            )
            seconds += result.seconds
        record = {
            "recipe": settings.model_dump(mode="json"),
            "parameters": model.num_parameters(),
            "data": packed,
            "corpus_sha256": corpora.digest(data.documents(settings.data)),
            "tokens": sum(budgets),
            "training_seconds": seconds,
            "seconds": time.perf_counter() - began,
            "held_out_loss": _loss(model, held_out, size),
        }
        # The numbers of the weights as saved, but computed in float32: CPUs are slow in bfloat16.
        losses = token_losses(model.to(torch.bfloat16).float(), held_out, batch_size=size)
        edges = _edges(held_out.seq_len)
        record |= {
            "held_out_loss_bfloat16": losses.double().nanmean().item(),
            "held_out_loss_by_position": {
                "edges": edges,
                "loss": loss_by_position(losses, edges),
            },
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
        }
        if settings.recurrence is not None:
            record["held_out_loss_by_recurrences"] = loss_by_recurrences(
                model, held_out, batch_size=size
            )
        model.to(torch.bfloat16).save_pretrained(directory.path)
        tokenizer.save_pretrained(directory.path)
        text = json.dumps(record, indent=1)
        (directory.path / "pretraining.json").write_text(text + "\n", encoding="utf-8")
        for index in range(len(settings.stages)):
            run_dir = directory.path / f"stage-{index + 1}"
            (run_dir / "metrics.jsonl").rename(directory.path / f"metrics-{index + 1}.jsonl")
            shutil.rmtree(run_dir)
        return directory.commit()


def _loss(model: PreTrainedModel, rows: Rows, size: int) -> float:
    return mean_loss(model, rows, batch_size=size)[0]


def _edges(seq_len: int) -> list[int]:
    edges = [0, 16]
    while edges[-1] < seq_len:
        edges.append(min(2 * edges[-1], seq_len))
    return edges


def main() -> int:
    """The command; returns its exit code, as listed in `linearize.errors`."""
    parser = argparse.ArgumentParser(prog="python -m linearize.pretrain", description=__doc__)
    parser.add_argument("--recipe", default="embedded", help="name or file of a recipe")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    arguments = parser.parse_args()
    try:
        print(pretrain(load(arguments.recipe), arguments.out, resume=arguments.resume))
    except LinearizeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
