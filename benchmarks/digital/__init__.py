"""Digital baselines: a still-picture coder and a channel code, over the same radio channel."""
