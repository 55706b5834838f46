"""Samplers: one file each, found by listing this folder; file name = sampler name.

A sampler is a function ``rows(schedule, timesteps) -> Table`` with `timesteps` ascending.
"""
