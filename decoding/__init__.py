"""How tokens are chosen: works with any causal LM of transformers."""
