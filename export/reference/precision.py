"""Precision of the trainings: bfloat16 where the device computes in it."""

from __future__ import annotations

import torch

# CPUs with none of these would emulate it, many times slower than float32.
COMPUTING = ("avx512_bf16", "amx_bf16", "bf16")


def emulated(device: torch.device) -> bool:
    """Whether `device` is a CPU that has no instructions for bfloat16."""
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return not any(capabilities.get(name, False) for name in COMPUTING)


def mixed(device: torch.device) -> torch.autocast:
    """A block in which convolutions and matrix products on `device` run in bfloat16, if it can."""
    return torch.autocast(device.type, torch.bfloat16, enabled=not emulated(device))
