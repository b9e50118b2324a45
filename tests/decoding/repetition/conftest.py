"""The golden model, which loops on purpose, and its tokenizer."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def looping(shared):
    """(model, tokenizer, prompts as ids); the tokenizer has no padding token."""
    folder = shared / "golden" / "anti_repetition"
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    texts = ["import a\nimport b\n", "def f(x):\n    return", "x = 1\nx = 1\nx = 1\n", "class A:"]
    prompts = tokenizer(texts).input_ids
    return AutoModelForCausalLM.from_pretrained(folder / "tiny_llama"), tokenizer, prompts
