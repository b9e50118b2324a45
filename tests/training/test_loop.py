from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time

import pytest
import torch
from small_run import SEQ_LEN, go, small_model, small_rows, small_settings

from linearize.errors import CheckError, InputError, Interrupted, OutputError, UsageError
from linearize.training.evaluate import mean_loss
from linearize.training.loop import train


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    return *go(run_dir), run_dir


def test_learns_and_tells(tmp_path):
    rows = small_rows()
    seen = []
    result = train(
        small_model(),
        rows,
        settings=small_settings(20, objective={"next_token": 1.0, "distill": 0.5}, eval_every=8),
        run_dir=tmp_path,
        teacher=contextlib.nullcontext,
        evaluate=lambda model: mean_loss(model, rows, batch_size=8)[0],
        on_step=seen.append,
    )
    assert (result.steps, result.tokens) == (20, 20 * 2 * SEQ_LEN)
    assert result.losses[-1] < 0.8 * result.losses[0]
    records = [record for record in lines(tmp_path) if "loss" in record]
    evaluations = [record for record in lines(tmp_path) if "eval_loss" in record]
    assert records == seen
    assert [record["loss"] for record in records] == result.losses
    assert [record["step"] for record in evaluations] == [0, 8, 16, 20]
    assert evaluations[-1]["eval_loss"] < 0.8 * evaluations[0]["eval_loss"]
    assert evaluations[-1].keys() == {"step", "tokens", "eval_loss"}
    assert list(records[0]) == [
        *("step", "tokens", "loss", "next_token", "distill", "lr", "grad_norm"),
        *("tokens_per_second", "seconds", "memory_bytes"),
    ]
    assert records[-1]["tokens"] == result.tokens
    assert records[3]["loss"] == pytest.approx(records[3]["next_token"], rel=1e-6)
    assert records[3]["memory_bytes"] > 10**7


def test_same_seed_same_run_other_seed_other_run(uninterrupted, tmp_path):
    model, result, _ = uninterrupted
    again, repeated = go(tmp_path / "again")
    assert repeated.losses == result.losses
    assert same(model, again)
    assert go(tmp_path / "other", seed=1)[1].losses != result.losses


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_resume_is_exact(uninterrupted, tmp_path, number, capfd):
    model, result, run_dir = uninterrupted
    before = signal.getsignal(number)

    def stop(record):
        if record["step"] == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"after 4 of 8 steps; .* --resume continues"):
        go(tmp_path, on_step=stop)
    assert "once more to abort" in capfd.readouterr().err
    assert signal.getsignal(number) is before
    with pytest.raises(OutputError, match=r"already holds a run \(step-00000004\); .*--resume"):
        go(tmp_path)
    resumed, rest = go(tmp_path, resume=True)
    assert rest.losses == result.losses
    assert same(model, resumed)
    # Whoever resumes a finished run gets its result.
    finished, whole = go(tmp_path, resume=True)
    assert (whole.losses, whole.tokens) == (result.losses, result.tokens)
    assert same(model, finished)
    changing = {"tokens_per_second", "seconds", "memory_bytes"}
    ours, theirs = (
        [{key: r[key] for key in r.keys() - changing} for r in lines(path)]
        for path in (tmp_path, run_dir)
    )
    assert ours == theirs


def test_signal_in_the_last_step_stops_the_job_too(tmp_path):
    """What comes after training (checks, saving the model) must not start."""

    def last(record):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after 2 of 2 steps"):
        go(tmp_path, steps=2, on_step=last)
    assert go(tmp_path, steps=2, resume=True)[1].steps == 2


def test_second_signal_stops_at_once(tmp_path):
    def impatient(record):
        first = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is first:
            time.sleep(0.001)  # two signals that are pending at once arrive as one
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, on_step=impatient)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "checkpoints").exists()


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(go(tmp_path, steps=1)[1].steps))
    thread.start()
    thread.join()
    assert found == [1]


def test_resume_with_other_settings_or_text_is_refused(tmp_path):
    go(tmp_path, steps=2)
    changes = {"learning_rate": 0.5, "checkpoint_every": 1, "log_every": 2}
    with pytest.raises(InputError) as error:
        go(tmp_path, steps=2, resume=True, **changes)
    assert "learning_rate was 0.001 and is 0.5; resume with" in str(error.value)
    with pytest.raises(InputError, match=r"training text \(checksum\) was"):
        train(
            small_model(),
            small_rows(23),
            settings=small_settings(2),
            run_dir=tmp_path,
            resume=True,
        )


def test_a_fresh_start_forgets_metrics_without_checkpoint(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 9.0}\n{"step": 1, "lo')
    go(tmp_path, steps=1, resume=True)
    assert [record["step"] for record in lines(tmp_path)] == [1]


def test_accumulated_batches_weigh_tokens_not_batches(tmp_path):
    """Rows of uneven target counts: the loss is that of one large batch."""
    rows = small_rows(3)
    found = []
    for size, accumulate in ((3, 1), (1, 3)):
        model = small_model()
        settings = small_settings(2, batch_size=size, accumulate=accumulate)
        result = train(model, rows, settings=settings, run_dir=tmp_path / str(size))
        found.append((result.losses, model))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for ours, theirs in zip(found[0][1].parameters(), found[1][1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_epochs_see_every_row_once(tmp_path):
    rows = small_rows(8)
    model = small_model()
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(map(tuple, kwargs["input_ids"].tolist())),
        with_kwargs=True,
    )
    train(model, rows, settings=small_settings(8), run_dir=tmp_path)
    every = sorted(map(tuple, rows.batch(range(8))["input_ids"].tolist()))
    assert sorted(seen[:8]) == sorted(seen[8:]) == every
    assert seen[:8] != seen[8:]


def test_nan_stops_and_keeps_the_last_checkpoint(tmp_path):
    model = small_model()

    def poison(record):
        if record["step"] == 5:
            with torch.no_grad():
                model.model.norm.weight[0] = torch.nan

    with pytest.raises(CheckError) as error:
        train(model, small_rows(), settings=small_settings(), run_dir=tmp_path, on_step=poison)
    message = str(error.value)
    assert "loss became nan in step 6 of 8 at learning rate 0.000" in message
    assert "checkpoints/step-00000003" in message
    assert "lower training.learning_rate, or train with training.dtype=float32" in message
    assert [record["step"] for record in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_infinite_gradient_never_reaches_the_weights(tmp_path):
    model = small_model()
    model.model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckError, match=r"gradient norm became (inf|nan) in step 1 of 8"):
        train(model, small_rows(), settings=small_settings(), run_dir=tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_held_out_nan_stops(tmp_path):
    with pytest.raises(CheckError, match="held-out loss became nan in step 0"):
        train(
            small_model(),
            small_rows(),
            settings=small_settings(),
            run_dir=tmp_path,
            evaluate=lambda model: float("nan"),
        )


def test_no_budget_no_steps(tmp_path):
    model = small_model().requires_grad_(False)
    result = train(
        model,
        small_rows(),
        settings=small_settings(0),
        run_dir=tmp_path,
        evaluate=lambda model: 2.5,
    )
    assert (result.steps, result.tokens, result.losses) == (0, 0, [])
    assert lines(tmp_path) == [{"step": 0, "tokens": 0, "eval_loss": 2.5}]


def test_log_every_thins_the_metrics_but_not_the_result(tmp_path):
    result = go(tmp_path, steps=5, log_every=2)[1]
    assert [record["step"] for record in lines(tmp_path)] == [2, 4, 5]
    assert len(result.losses) == 5


def test_mistakes_say_what_to_do(tmp_path):
    rows = small_rows()
    run = {"run_dir": tmp_path, "settings": small_settings()}
    with pytest.raises(UsageError, match="no parameter requires grad"):
        train(small_model().requires_grad_(False), rows, **run)
    with pytest.raises(UsageError, match="did you mean 'next_token'"):
        train(
            small_model(),
            rows,
            run_dir=tmp_path,
            settings=small_settings(objective={"next_tokens": 1}),
        )
    for device in ("meta", "gpu"):
        with pytest.raises(UsageError, match=f"training.device={device}"):
            train(small_model(), rows, run_dir=tmp_path, settings=small_settings(device=device))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*metrics\.jsonl"):
        train(small_model(), rows, settings=small_settings(), run_dir=tmp_path / "file")
