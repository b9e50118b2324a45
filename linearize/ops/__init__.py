"""The numerics: pure functions on tensors. No transformers import."""
