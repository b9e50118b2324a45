"""Speed and memory, measured honestly: warm-up, interleaved rounds, medians, ratios of one run."""
