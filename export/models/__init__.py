"""Models: the torch modules that published checkpoints load into."""
