"""Text in, text out: the commands `linearize` and `decode`."""
