"""`generate` with the samplers that think token by token, on a looped model."""

import pytest
from looped_batches import PROMPTS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import linearize.decoding.recurrent_depth.samplers  # noqa: F401  (makes them rows)
from linearize.decoding import generate
from linearize.errors import UsageError

SAMPLERS = {
    "autoregressive": {"num_steps": 6},
    "adaptive": {"num_steps": 12, "exit_threshold": 0.01},
    "self-speculative": {"num_steps": 6, "draft_steps": 2, "lookahead": 3},
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


@pytest.fixture(scope="module")
def ascii_tokenizer():
    own = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    own.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=own)


@pytest.fixture
def run(looped, ascii_tokenizer):
    def call(sampler, prompts=PROMPTS, **options):
        options = {"max_new_tokens": 12, **SAMPLERS[sampler], **options}
        model = looped.model("trained_242")
        return generate(model, ascii_tokenizer, prompts, sampler=sampler, **options)

    return call


@every_sampler
def test_a_prompt_gets_the_same_text_alone_and_in_any_batch(run, sampler):
    for options in ({}, {"temperature": 1.2, "top_k": 5}, {"init_scale": 1.0}):
        seeds = [3, 4, 5]
        together = run(sampler, seed=seeds, **options)
        alone = [
            run(sampler, [p], seed=s, **options)[0] for p, s in zip(PROMPTS, seeds, strict=True)
        ]
        assert [r.text for r in together] == [r.text for r in alone]
        assert all(len(r.ids) == 12 for r in together)


def test_greedy_text_is_the_same_by_every_sampler(run):
    plain, *others = (
        [r.text for r in run(sampler, remedies=remedies)]
        for remedies in ({}, {"repetition-penalty": {"penalty": 4.0}})
        for sampler in SAMPLERS
    )
    assert others[:2] == [plain] * 2
    assert others[2:] == [others[2]] * 3
    assert others[2] != plain


@every_sampler
def test_drawing_differs_by_seed(run, sampler):
    texts = {run(sampler, PROMPTS[2:], seed=s, temperature=3.0)[0].text for s in range(4)}
    assert len(texts) > 1


@every_sampler
def test_stop_strings_end_one_row(run, sampler):
    rows = run(sampler, stop=["e"])
    assert [r.finish_reason for r in rows] == ["length", "length", "stop"]
    assert "e" not in rows[2].text


@every_sampler
def test_text_is_streamed_and_statistics_are_told(run, sampler):
    pieces = []
    (found,) = run(sampler, PROMPTS[:1], on_text=pieces.append)
    assert "".join(pieces) == found.text
    assert len(pieces) > 1
    assert found.stats["core_passes"] > 12
    if sampler == "self-speculative":
        assert 0 < found.stats["accepted"] <= found.stats["drafted"]
    else:
        assert sum(found.stats["steps"]) == found.stats["core_passes"]


@every_sampler
def test_other_models_are_refused_and_told_what_fits(ascii_tokenizer, sampler):
    config = LlamaConfig(
        vocab_size=128, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with pytest.raises(UsageError, match=f"'{sampler}' .* LlamaForCausalLM .* greedy, sample"):
        generate(LlamaForCausalLM(config), ascii_tokenizer, "ab", sampler=sampler)


def test_a_bad_criterion_is_told_before_anything_runs(run):
    with pytest.raises(UsageError, match="no exit criterion 'klein'"):
        run("adaptive", criterion="klein")
    with pytest.raises(UsageError, match="has no option 'criterion'; it belongs to 'adaptive'"):
        run("autoregressive", criterion="kl")
