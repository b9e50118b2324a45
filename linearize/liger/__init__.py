"""Recurrence over time: softmax attention becomes a gated recurrence beside a short window."""
