"""The small model that ships with the package: a Llama trained on the standard library."""
