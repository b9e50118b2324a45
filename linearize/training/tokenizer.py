"""A tokenizer of one's own: byte-level BPE, for models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..errors import UsageError

_BOS, _EOS, _PAD = "<s>", "</s>", "<pad>"  # ids 0, 1, 2


def train_bpe(
    texts: Iterable[str], *, vocab_size: int, context: int | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2's pre-tokenizer), so that every text is encoded without loss.

    Special tokens are `<s>`, `</s>` and `<pad>`; the tokenizer adds none of them by itself.

    Args:
        texts: documents to learn merges from.
        vocab_size: tokens in all, with the 256 bytes and 3 special tokens; at least 259.
        context: the model's context in tokens, stored for users of the tokenizer.

    Raises `UsageError` for a smaller vocabulary, or when the texts have too few pairs to fill it.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + 3
    if vocab_size < least:
        raise UsageError(
            f"tokenizer.vocab_size={vocab_size}: bytes and special tokens take {least}"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_BOS, _EOS, _PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer=trainer)
    if bpe.get_vocab_size() < vocab_size:
        raise UsageError(
            f"tokenizer.vocab_size={vocab_size} is more than the text gives "
            f"({bpe.get_vocab_size()}); lower it or give more text"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
        **({} if context is None else {"model_max_length": context}),
    )
