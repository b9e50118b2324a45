"""What a person writes: a strict, typed YAML recipe. Maps to a `LigerSpec` and training settings.

Precedence: defaults < recipe file < `key=value` overrides < named options of the command.
Unknown keys are errors that name the nearest known key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from .errors import UsageError, suggest
from .liger.spec import LigerSpec
from .recipe_files import names as names
from .recipe_files import read
from .recurrent_depth.spec import MAX_RECURRENCES, LoopSpec

_AUTO = "auto:"  # before the number of layers that are chosen by measuring


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


def _layers(value: Any) -> Any:
    """Says what is wrong in one line, where pydantic would say it once per type."""
    whole = isinstance(value, list | tuple) and all(type(i) is int for i in value)
    if whole or (isinstance(value, str) and re.fullmatch(_AUTO + "[1-9][0-9]*", value)):
        return value
    raise PydanticCustomError(
        "layers", "Give a list of layers such as [0, -1], or auto:k to measure which k to keep"
    )


Kept = Annotated[list[int] | str, BeforeValidator(_layers)]


class LigerSettings(_Strict):
    """The converted layer; see `LigerSpec` for meaning and limits."""

    gate: str = "gla"
    window: int = Field(64, ge=2)
    sinks: int = Field(0, ge=0)  # first tokens that stay visible beside the window
    mix: Literal["fixed", "learned", "delayed", "joint", "window"] = "learned"
    mix_weight: float = Field(0.5, ge=0, le=1)
    gate_normalizer: float | None = Field(None, gt=0)
    gate_source: Literal["key", "query", "value"] = "key"
    gate_lower_bound: float = Field(0.0, ge=0, lt=1)  # of the decay per token; for hgrn2
    slots: int = Field(64, ge=1)  # of gsa
    keep_softmax: Kept = []  # layers, or auto:k = the k that are damaged most, as measured
    every: int | None = Field(None, ge=2)  # the last of every so many layers is kept too
    prefix: Literal["none", "jrt"] = "none"  # jrt = the prompt is also encoded as a whole
    prefix_rank: int = Field(16, ge=0)

    @property
    def auto(self) -> int:
        """How many layers are to be chosen by measuring; 0 = they are named."""
        kept = self.keep_softmax
        return int(kept.removeprefix(_AUTO)) if isinstance(kept, str) else 0

    def spec(self, kept: Iterable[int] = ()) -> LigerSpec:
        """The frozen description that goes into the model's `config.json`.

        - `kept`: the layers chosen where `keep_softmax` is `auto:k`; ignored where it names them.
        """
        values = self.model_dump()
        return LigerSpec(**(values | {"keep_softmax": tuple(kept)} if self.auto else values))


class DataSettings(_Strict):
    """Where text comes from and how it becomes rows of `seq_len` tokens."""

    source: str | None = None  # hub data set, file, directory, glob, or "stdlib"
    config: str | None = None  # configuration name of a hub data set
    split: str = "train"  # split of a hub data set
    field: str = "text"  # field of .jsonl / .parquet / hub rows that holds the text
    prompt_field: str | None = None  # with how the text begins: only what follows is learned
    eval_source: str | None = None  # held-out text; None takes eval_fraction of the documents
    eval_fraction: float = Field(0.02, gt=0, lt=1)
    eval_tokens: int = Field(50_000, ge=1)  # at most this many tokens are evaluated
    separator: str = "<|endoftext|>"  # line that separates documents in .txt files; "" = none
    # functions: train on each function of Python sources as a document of its own
    pieces: Literal["documents", "functions"] = "documents"
    seq_len: int = Field(512, ge=2)  # tokens per row
    boundaries: bool = True  # False: documents leak into each other inside a row (the paper's code)
    bos: bool = True  # begin each document with the tokenizer's bos token, if it has one
    eos: bool = True  # end each document with the tokenizer's eos token, if it has one


class LoraSettings(_Strict):
    """Low-rank adapters (peft). `rank: 0` trains every parameter instead."""

    rank: int = Field(8, ge=0)
    alpha: float = Field(8, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = ["q_proj", "k_proj", "v_proj"]


class TrainingSettings(_Strict):
    """One run of the loop. `tokens` is the budget; steps follow from it."""

    tokens: int = Field(20_000_000, ge=0)  # training tokens seen in all, repeats counted
    batch_size: int = Field(8, ge=1)  # rows per forward pass, at most
    # batch_size * accumulate rows make an optimizer step, however many processes share them
    accumulate: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    mix_learning_rate: float | None = Field(None, gt=0)  # for the mix weights; None = learning_rate
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps
    final_lr: float = Field(0.1, ge=0, le=1)  # last learning rate as a share of the first
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)  # gradient norm
    objective: dict[str, float] = {"distill": 1.0}  # objective name -> weight
    seed: int = 0
    # auto = the checkpoint's; on the CPU float32, and the result is saved as the checkpoint was
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"  # auto = cuda, then mps, then cpu
    gradient_checkpointing: bool = False
    shard: bool = False  # of several processes each holds a part of the model (FSDP2)
    checkpoint_every: int = Field(100, ge=1)  # optimizer steps
    eval_every: int = Field(0, ge=0)  # optimizer steps; 0 = only before and after
    log_every: int = Field(1, ge=1)  # optimizer steps


class StageSettings(_Strict):
    """A training before the main one; what it does not say is as in `training`."""

    tokens: int = Field(ge=1)
    objective: dict[str, float] = {"align": 1.0}
    train: Literal["all", "mix"] = "all"  # mix = only what the conversion added
    learning_rate: float | None = Field(None, gt=0)
    mix_learning_rate: float | None = Field(None, gt=0)


class RepetitionSettings(_Strict):
    """Rows that repeat one piece of the training text, for objectives that train against loops."""

    share: float = Field(0.5, ge=0, le=1)  # of the optimizer steps; the others see ordinary rows
    # most a copy may have of the probability of the copy before; with cap, of the best other token
    penalty: float = Field(0.5, ge=0, le=1)
    loss: Literal["nl", "nl_clip", "mse"] = "nl"  # nl is the paper's; see training/ditto.py
    unit: Literal["sentence", "line", "mark"] = "sentence"  # mark: as in the paper's code
    units: int = Field(1, ge=1)  # repeat 1 to this many neighbouring units together
    context: int = Field(64, ge=0)  # tokens of text kept before the first copy, at most
    # model: rows are greedy continuations of `context` tokens, written by the model as it is then
    origin: Literal["text", "model"] = "text"
    refresh: int = Field(40, ge=1)  # of model: optimizer steps until they are written anew
    ngram: int = Field(4, ge=2)  # of cap: what completes one that was there before is a copy
    certain: float = Field(0.9, gt=0, le=1)  # of cap: copies that together have more stay
    emphasis: float = Field(1.0, gt=0)  # of cap: how often a written copy counts that it prevents


class RecurrenceSettings(_Strict):
    """How often the core of a looped model is applied in training; see training/recurrence.py."""

    # recurrences, drawn anew for each optimizer step
    mean: int = Field(8, ge=1, le=MAX_RECURRENCES)
    backprop: int = Field(8, ge=1)  # the last so many carry gradient
    ramp: float = Field(0.25, ge=0, le=1)  # share of the steps in which the mean rises from 1
    shape: Literal["linear", "1-sqrt"] = "linear"  # of that rise; 1-sqrt stays low for longer


class EncoderSettings(_Strict):
    """Rows that begin with a prefix, for models with liger.prefix and objective masked_prefix."""

    rows: float = Field(0.75, ge=0, le=1)  # share of rows with a prefix; the others are causal
    # field of .jsonl, .parquet or hub rows that holds how their text begins: the prefix; every row
    # is one document then. None = rows are as always, and the prefix is drawn:
    prompt: str | None = None
    shortest: float = Field(0.25, ge=0, lt=1)  # prefix as a share of its row, drawn from here
    longest: float = Field(0.75, ge=0, lt=1)  # to here
    masked: float = Field(0.15, ge=0, le=1)  # share of the prefix's tokens that are masked
    mask_token: str | None = None  # None = the tokenizer's mask token, else its unknown token


class OutputSettings(_Strict):
    """What is written."""

    save: Literal["merged", "adapter"] = "merged"
    samples: int = Field(3, ge=0)  # continuations of held-out text shown in the report
    sample_tokens: int = Field(96, ge=1)
    baseline: bool = False  # also train the window alone with the same budget, for the report


class _Job(_Strict):
    """What the recipes of all jobs have in common."""

    base: str | None = None  # hub id or local directory
    revision: str | None = None  # of a hub id
    out: str | None = None  # output directory
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    training: TrainingSettings = TrainingSettings()
    repetition: RepetitionSettings = RepetitionSettings()
    encoder: EncoderSettings = EncoderSettings()
    trust_remote_code: bool = False  # run Python code found in the base's repository


class Recipe(_Job):
    """Everything `linearize convert` needs."""

    liger: LigerSettings = LigerSettings()
    stages: list[StageSettings] = []  # before `training`, in this order
    output: OutputSettings = OutputSettings()


class FinetuneLora(LoraSettings):
    """As for conversions, but for any architecture: all linear layers except the head."""

    targets: list[str] = ["all-linear"]


class FinetuneTraining(TrainingSettings):
    """As for conversions, but without a teacher unless asked for."""

    objective: dict[str, float] = {"next_token": 1.0}


class MeasureSettings(_Strict):
    """Greedy continuations of held-out text, before and after training."""

    prompts: int = Field(100, ge=0)  # documents continued; 0 = do not measure
    prompt_tokens: int = Field(50, ge=1)  # shorter documents are left out
    new_tokens: int = Field(200, ge=1)
    copies: int = Field(3, ge=0)  # of a sentence in prompts that loop already; 0 = no such prompts
    at_once: int = Field(16, ge=1)  # prompts continued together


class FinetuneOutput(_Strict):
    """What is written."""

    save: Literal["merged", "adapter"] = "merged"


class FinetuneRecipe(_Job):
    """Everything `linearize finetune` needs."""

    lora: FinetuneLora = FinetuneLora()
    training: FinetuneTraining = FinetuneTraining()
    measure: MeasureSettings = MeasureSettings()
    output: FinetuneOutput = FinetuneOutput()


class LoopSettings(_Strict):
    """Layers of each part; see `LoopSpec`."""

    prelude: int = Field(4, ge=0)  # the first so many
    core: int = Field(8, ge=1)  # before the coda; what is between prelude and core is dropped
    coda: int = Field(4, ge=0)  # the last so many


class LoopLora(FinetuneLora):
    """Everything is trained unless a rank is given; the adapter into the core always is."""

    rank: int = Field(0, ge=0)


class LoopMeasure(_Strict):
    """Held-out loss of the trained model, by number of recurrences."""

    recurrences: list[Annotated[int, Field(ge=1, le=MAX_RECURRENCES)]] = Field(
        [1, 2, 4, 8, 16], min_length=1
    )


class LoopRecipe(_Job):
    """Everything `linearize loop` needs."""

    loop: LoopSettings = LoopSettings()
    recurrence: RecurrenceSettings = RecurrenceSettings()
    lora: LoopLora = LoopLora()
    training: FinetuneTraining = FinetuneTraining()
    measure: LoopMeasure = LoopMeasure()
    output: FinetuneOutput = FinetuneOutput()

    def spec(self) -> LoopSpec:
        """The frozen description that goes into the model's `config.json`."""
        depth = self.recurrence
        return LoopSpec(**self.loop.model_dump(), recurrences=depth.mean, backprop=depth.backprop)


AnyRecipe = Recipe | FinetuneRecipe | LoopRecipe
Kind = TypeVar("Kind", Recipe, FinetuneRecipe, LoopRecipe)


def override(
    values: dict[str, Any], assignments: list[str], kind: type[BaseModel] = Recipe
) -> dict[str, Any]:
    """Apply `a.b=value` assignments (values parsed as YAML) to a nested dict, in place.

    A bare key such as `rank=8` is accepted where exactly one section has it.
    """
    for assignment in assignments:
        key, equals, raw = assignment.partition("=")
        if not equals or not key:
            raise UsageError(
                f"'{assignment}' is not an override; write key=value, as in liger.window=128"
            )
        path = _full_key(key, kind)
        target = values
        for part in path[:-1]:
            target = target.setdefault(part, {})
        try:
            target[path[-1]] = _parse(raw)
        except yaml.YAMLError as error:
            raise UsageError(f"the value of '{assignment}' is not valid YAML: {error}") from error
    return values


def build(values: dict[str, Any], kind: type[Kind] = Recipe) -> Kind:
    """Validate a nested dict. Raises `UsageError` naming the key, the value and the limit."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(e, kind) for e in error.errors())) from error


def load(
    recipes: str | Sequence[str] | None,
    assignments: list[str] | None = None,
    kind: type[Kind] = Recipe,
) -> Kind:
    """Read, override and validate in one call; None starts from the defaults.

    - `recipes`: name or file; of several, later ones count before earlier ones.
    """
    values = read(*([recipes] if isinstance(recipes, str) else recipes or []))
    return build(override(values, assignments or [], kind), kind)


def dump(recipe: AnyRecipe) -> str:
    """YAML text with every value spelled out, saved beside each result."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _sections(kind: type[BaseModel]) -> dict[str, list[str]]:
    found = {}
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found[name] = list(section.model_fields)
    return found


def _known_keys(kind: type[BaseModel]) -> list[str]:
    sections = _sections(kind)
    nested = [f"{s}.{k}" for s, keys in sections.items() for k in keys]
    return nested + [n for n in kind.model_fields if n not in sections]


def _full_key(key: str, kind: type[BaseModel]) -> list[str]:
    parts = key.split(".")
    sections = _sections(kind)
    if len(parts) == 1 and key not in kind.model_fields:
        homes = [s for s, keys in sections.items() if key in keys]
        if len(homes) == 1:
            return [homes[0], key]
        if homes:
            full = " or ".join(f"{home}.{key}" for home in homes)
            raise UsageError(f"recipe key '{key}' stands in several sections; write {full}")
        bare = [k for keys in sections.values() for k in keys]
        raise UsageError(f"unknown recipe key '{key}'{suggest(key, bare + _known_keys(kind))}")
    free_form = len(parts) == 3 and parts[:2] == ["training", "objective"]
    if not free_form and key not in _known_keys(kind):
        raise UsageError(f"unknown recipe key '{key}'{suggest(key, _known_keys(kind))}")
    return parts


def _parse(raw: str) -> Any:
    value = yaml.safe_load(raw)
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            return value
    return value


def _explain(error: Any, kind: type[BaseModel]) -> str:
    key = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        near = suggest(key, _known_keys(kind)) or "; linearize/recipe.py explains every key"
        return f"unknown recipe key '{key}'{near}"
    return f"recipe key '{key}' = {error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"
