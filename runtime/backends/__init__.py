"""Backends: engine libraries that run a stage's graph. One file each."""
