"""Samplers: one file each, found by listing this folder; file name = sampler name.

A sampler is a function ``rows(schedule, timesteps) -> Table`` with `timesteps` ascending. Its file
may have a ``timesteps(schedule, steps, last_level)`` of its own in place of
`jscc.runtime.spacing.linspace`.
"""
