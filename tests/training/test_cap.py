"""The objective `cap`: which tokens are copies, what capping leaves alone, loss and gradients."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import small_model

from linearize.errors import UsageError
from linearize.greedy import GREEDY
from linearize.recipe import RepetitionSettings
from linearize.training import objectives
from linearize.training.cap import capped, copies
from linearize.training.objectives import Forward

VOCABULARY = 6


def definition(row: list[int], begins: list[int], place: int, n: int) -> set[int]:
    """Copies at a place of a row, by looking at every n-gram of its document."""
    document = row[begins[place] : place + 1]
    grams = [tuple(document[at : at + n]) for at in range(len(document) - n + 1)]
    last = tuple(document[len(document) - n + 1 :])
    return {gram[-1] for gram in grams if gram[:-1] == last and len(last) == n - 1}


rows = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=24)


@settings(max_examples=150, deadline=None)
@given(row=rows, cut=st.integers(0, 24), n=st.integers(2, 5))
def test_copies_are_what_completes_an_n_gram_of_the_document_again(row, cut, n) -> None:
    begins = [0 if at < cut else cut for at in range(len(row))]
    both = torch.tensor([row, row[::-1]])
    of = {"n": n, "vocabulary": VOCABULARY}
    starts = torch.tensor([begins, begins])
    found = copies(both, starts, torch.arange(both.numel()), **of)
    for number, ids in enumerate(both.tolist()):
        for place in range(len(row)):
            at = number * len(row) + place
            there = set(found[at].nonzero().flatten().tolist())
            assert there == definition(ids, begins, place, n)
    some = torch.randperm(both.numel())[:3]
    assert torch.equal(copies(both, starts, some, **of), found[some])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 2.0, 100.0]),
    penalty=st.sampled_from([0.0, 0.3, 1.0]),
    certain=st.sampled_from([0.5, 0.9, 1.0]),
)
def test_a_capped_copy_has_its_share_of_the_best_other_and_all_else_keeps_its_odds(
    seed, scale, penalty, certain
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(20, VOCABULARY, generator=generator)
    copies = torch.rand(20, VOCABULARY, generator=generator) < 0.5
    copies[0], copies[1] = True, False
    found, lowered = capped(logits, copies, penalty=penalty, certain=certain)
    assert found.isfinite().all()
    assert torch.equal(found[~copies], logits[~copies])
    for row in range(20):
        taken = logits[row].softmax(-1)[copies[row]].sum()
        if copies[row].all() or taken > certain:
            assert torch.equal(found[row], logits[row])
            continue
        best = logits[row][~copies[row]].max()
        wanted = logits[row][copies[row]].clamp(max=best + math.log(max(penalty, 1e-6)))
        torch.testing.assert_close(found[row][copies[row]], wanted)
        if penalty < 1:
            assert not copies[row, found[row].argmax()]
    assert torch.equal(lowered, found != logits)


def test_without_copies_the_loss_is_distillation() -> None:
    batch = {"input_ids": torch.arange(10)[None], "targets": torch.arange(1, 11)[None]}
    step = taught(batch | {"written": torch.ones(1, 10, dtype=torch.bool)}, emphasis=7.0)
    mine, theirs = (objectives.OBJECTIVES[name](step) for name in ("cap", "distill"))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("chunks", [False, True])
def test_loss_and_gradients_are_their_definition(chunks, monkeypatch) -> None:
    if chunks:
        monkeypatch.setattr(objectives, "_CHUNK_ELEMENTS", 512 * 5)
    begun = torch.randint(10, 500, (3, 5), generator=torch.Generator().manual_seed(3))
    ids = small_model().generate(begun, max_new_tokens=36, eos_token_id=None, **GREEDY)
    written = torch.arange(40).expand(3, -1) >= 6
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:], "written": written}
    step = taught(batch, ngram=3, penalty=0.25, certain=0.9, emphasis=4.0)
    total, values = objectives.total(step, {"cap": 2.0, "next_token": 5.0})
    assert values.keys() == {"cap"}

    log_p, known = step.logits.log_softmax(-1), step.teacher_logits
    terms, weights = [], []
    for row in range(3):
        for place in range(6, 40):
            scores, target = known[row, place].clone(), batch["targets"][row, place].item()
            copies = sorted(definition(batch["input_ids"][row].tolist(), [0] * 40, place, 3))
            others = [token for token in range(len(scores)) if token not in copies]
            weight = 1.0
            if copies and scores.softmax(-1)[copies].sum() <= 0.9:
                bound = scores[others].max() + math.log(0.25)
                weight = 4.0 if target in copies and scores[target] > bound else 1.0
                scores[copies] = scores[copies].clamp(max=bound)
            p = scores.log_softmax(-1)
            terms.append(weight * (p.exp() * (p - log_p[row, place])).sum())
            weights.append(weight)
    assert len(set(weights)) == 2
    wanted = 2 * sum(terms) / sum(weights)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert objectives.terms(batch) == len(terms)
    parameters = list(step.model.parameters())
    ours = torch.autograd.grad(total, parameters, retain_graph=True)
    theirs = torch.autograd.grad(wanted, parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_it_needs_rows_that_say_what_was_written() -> None:
    with pytest.raises(UsageError, match=r"repetition\.origin=model"):
        objectives.OBJECTIVES["cap"](Forward(None, {}))


def taught(batch, **changes) -> Forward:
    """A small model, and as its teacher the same with logits twice as large."""
    model = small_model()
    head = model.lm_head.weight

    @contextlib.contextmanager
    def teacher():
        head.data.mul_(2)
        yield
        head.data.div_(2)

    return Forward(model, batch, teacher=teacher, repetition=RepetitionSettings(**changes))
