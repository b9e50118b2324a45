"""Measurement: reports and benches."""
