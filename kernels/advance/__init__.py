"""One row of a sampler's table applied to the state."""
