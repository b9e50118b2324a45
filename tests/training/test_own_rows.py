"""Rows that the model writes itself: greedy, up to the end of a text, kept with a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_run import small_model, small_rows, small_settings
from transformers import AutoTokenizer

from linearize import pretrained, recipe
from linearize.errors import InputError, UsageError
from linearize.recipe import DataSettings, FinetuneRecipe, RepetitionSettings
from linearize.training import own_rows, processes, stages
from linearize.training.evaluate import evaluating
from linearize.training.loop import train
from linearize.training.own_rows import OwnRows

SEQ_LEN = 48
# Each a word of three tokens, said again and again: the model goes on with it, for a while.
_WORDS = np.random.default_rng(3).integers(10, 500, (40, 3)).astype(np.int32)
STARTS = np.ascontiguousarray(np.tile(_WORDS, 3)[:7, :8])


def rows_of(ends=()) -> OwnRows:
    settings = RepetitionSettings(origin="model", context=STARTS.shape[1])
    return OwnRows(STARTS, SEQ_LEN, settings, ends)


def adapted(dropout: float = 0.0):
    """The small model under adapters that change it: without them it is its own teacher."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(small_model(dropout=dropout), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def test_rows_are_what_the_model_says() -> None:
    torch.set_num_threads(1)
    model, rows = small_model(dropout=0.1).train(), rows_of()
    rows.write(1, [4, 0, 6], model)
    assert model.training
    batch = rows.batch([6, 4])
    assert {name: tuple(t.shape) for name, t in batch.items()} == dict.fromkeys(
        ("input_ids", "targets", "written"), (2, SEQ_LEN)
    )
    assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1])
    assert batch["input_ids"][:, :8].tolist() == STARTS[[6, 4]].tolist()
    with evaluating(model), torch.no_grad():
        said = model(batch["input_ids"]).logits.argmax(-1)
    own = torch.arange(SEQ_LEN) >= 7
    assert torch.equal(batch["written"], own.expand(2, -1))
    assert torch.equal(batch["targets"][:, own], said[:, own])
    with pytest.raises(KeyError):
        rows.batch([1])


def test_nothing_counts_behind_the_end_of_a_text() -> None:
    model = small_model()
    plain = rows_of()
    plain.write(1, range(7), model)
    before = plain.batch(range(7))
    end = before["targets"][0, 12].item()  # what the first row says as its sixth
    rows = rows_of((end,))
    rows.write(1, range(7), model)
    batch = rows.batch(range(7))
    for at in range(7):
        places = (before["targets"][at, 7:] == end).nonzero()
        stop = 7 + places[0].item() if len(places) else SEQ_LEN - 1
        assert torch.equal(batch["targets"][at, : stop + 1], before["targets"][at, : stop + 1])
        assert batch["written"][at].nonzero().flatten().tolist() == list(range(7, stop + 1))
    assert batch["written"].sum() < before["written"].sum()


def test_processes_write_their_share_each(monkeypatch) -> None:
    model, alone = small_model(), rows_of()
    alone.write(1, range(7), model)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(processes, "count", lambda: 2)
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "summed", lambda tensor: tensor)
        rows = rows_of()
        rows.write(1, range(7), model)
        shares.append(rows.state())
    assert torch.equal(shares[0]["rows"] + shares[1]["rows"], alone.state()["rows"])
    assert not shares[0]["rows"][1::2].any()
    assert torch.equal(shares[0]["starts"], alone.state()["starts"])


def run(path, *, on_step=None, resume=False, refresh=4, steps=9):
    torch.set_num_threads(1)
    model = adapted(dropout=0.1)
    weights = {"next_token": 1.0, "cap": 1.0}
    settings = small_settings(steps, objective=weights, accumulate=2, learning_rate=3e-2)
    rows = OwnRows(
        np.random.default_rng(3).integers(10, 500, (40, 8)).astype(np.int32),
        SEQ_LEN,
        RepetitionSettings(origin="model", context=8, refresh=refresh, ngram=2, share=0.6),
    )
    result = train(
        model,
        small_rows(),
        settings=settings,
        run_dir=path,
        repeated=rows,
        teacher=model.disable_adapter,
        on_step=on_step,
        resume=resume,
    )
    return model, rows, result


@pytest.mark.parametrize("last", [4, 6])
def test_a_resumed_run_trains_on_the_rows_that_were_written(last: int, tmp_path) -> None:
    def stop(record):
        if record["step"] == last:  # the end of a stretch of steps, or its middle
            raise KeyboardInterrupt

    model, rows, whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", on_step=stop)
    again, others, resumed = run(tmp_path / "cut", resume=True)
    assert resumed.losses == whole.losses
    assert all(torch.equal(t, others.state()[name]) for name, t in rows.state().items())
    ours, theirs = again.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(InputError, match=r"repetition.refresh was 4 and is 5"):
        run(tmp_path / "cut", resume=True, refresh=5)


def test_rows_are_written_anew_when_they_are_due(tmp_path) -> None:
    written = []

    class Watched(OwnRows):
        def write(self, step, indices, *more):
            super().write(step, indices, *more)
            written.append((step, len(indices)))

    settings = RepetitionSettings(origin="model", context=8, refresh=3, share=1.0)
    rows = Watched(STARTS, SEQ_LEN, settings)
    train(
        model := adapted(),
        small_rows(),
        settings=small_settings(8, objective={"cap": 1.0}),
        run_dir=tmp_path,
        repeated=rows,
        teacher=model.disable_adapter,
    )
    assert written == [(1, 6), (4, 6), (7, 4)], "two rows a step, and no step beyond the last"


def test_few_documents_are_continued_from_their_middle_too(monkeypatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pretrained.locate("embedded"))
    text = " ".join(f"number {i}" for i in range(60))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    data = DataSettings(source="text", seq_len=64)
    settings = RepetitionSettings(origin="model", context=16)
    rows = own_rows.build([text, "short", text], data, settings, tokenizer, 10_000)
    begins = [[tokenizer.bos_token_id, *ids[at : at + 15]] for at in range(0, len(ids) - 15, 64)]
    assert len(begins) > 1
    assert rows.starts.tolist() == begins[:1] * 2 + begins[1:] * 2
    assert rows.ends == (tokenizer.eos_token_id,)
    few = own_rows.build([text, text], data, settings, tokenizer, 20)
    assert few.starts.tolist() == begins[:1], "no more text than the budget"
    monkeypatch.setattr(own_rows, "ENOUGH", 2)
    many = own_rows.build([text, text], data, settings, tokenizer, 10_000)
    assert many.starts.tolist() == begins[:1] * 2
    with pytest.raises(InputError, match="holds no document of 15 tokens to continue"):
        own_rows.build(["short"], data, settings, tokenizer, 10_000)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["repetition.context=256"], "repetition.context=256 is what the model goes on from"),
        (["lora.rank=0"], "lora.rank=0 trains the weights that objective 'distill' needs"),
        (["training.objective={next_token: 1, ditto: 1}"], "'ditto' is for sentences of the text"),
        (["repetition.origin=text"], "'cap' is for rows that the model writes"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(change, told) -> None:
    wanted = recipe.load("ditto-own", change, FinetuneRecipe)
    with pytest.raises(UsageError, match=told):
        stages.check(wanted)
