"""Recall tasks as pure functions of a seed, one file per family.

Every item has a generator of its own, drawn from (seed, number): more items, or fewer, leave the
others as they are. No file here knows of a harness or a model.
"""
