"""Standard normal numbers from a counter, the same bits on every machine."""
