"""Prompts for the golden looped models, whose token ids are ASCII codes."""

import torch

from linearize.decoding.recurrent_depth.request import Request

PROMPTS = ["c3:04,07,1", "r:abab", "s:ann sees the dog.\ns:"]


def padded(texts):
    """ids [B, T] and mask of ASCII texts; padding is a token that also occurs in texts."""
    width = max(map(len, texts))
    ids = [[97] * (width - len(t)) + list(t.encode()) for t in texts]
    mask = [[0] * (width - len(t)) + [1] * len(t) for t in texts]
    return torch.tensor(ids), torch.tensor(mask)


def batch(texts, length, **settings):
    ids, mask = padded(texts)
    return Request(ids, length, attention_mask=mask, **settings)


def new(run, texts):
    """New tokens of each row."""
    return run.ids[:, max(map(len, texts)) :].tolist()
