"""Commented YAML recipes, one per job."""
