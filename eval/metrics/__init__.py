"""Metrics of repetition: what they count, in numbers that can be compared with the papers."""
