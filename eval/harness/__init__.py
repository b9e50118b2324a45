"""The harness: lm-eval's tasks over every model and sampler of this package."""
