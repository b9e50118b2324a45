"""Samplers for looped models: whole loops instead of one choice per token."""
