"""The null-space correction for average pooling and one row of a sampler's table, in one go."""
