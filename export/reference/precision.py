"""Precision of the trainings: bfloat16 where the device computes in it."""

from __future__ import annotations

import torch

# Capabilities, in the words of torch.backends.cpu, of CPUs that would emulate it many times slower.
EMULATING = ("DEFAULT", "AVX2", "NO AVX")


def mixed(device: torch.device) -> torch.autocast:
    """A block in which convolutions and matrix products on `device` run in bfloat16, if it can."""
    emulated = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in EMULATING
    return torch.autocast(device.type, torch.bfloat16, enabled=not emulated)
