"""Pack: averaged weights of the three stages into one file under the official DiffJSCC names."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import torch
import yaml
from safetensors.torch import save

from jscc.export.reference.loop import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

# (stage, its prefix, official prefix); as upstream, the condition encoder is the first stage's.
NAMES: Final = (
    ("codec", "", "preprocess_model."),
    ("autoencoder", "", "first_stage_model."),
    ("autoencoder", "encoder.", "cond_encoder.encoder."),
    ("autoencoder", "quant_conv.", "cond_encoder.quant_conv."),
    ("diffusion", "control.", "control_model."),
    ("diffusion", "unet.", "model.diffusion_model."),
)


def official_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns the averaged weights in `folder` under official names, floats as float16."""
    stages = {stage: read_checkpoint(folder / f"{stage}.pt")["ema"] for stage, _, _ in NAMES}
    if (folder / "decoder.pt").exists():
        stages["autoencoder"] = read_checkpoint(folder / "decoder.pt")["ema"]
    tensors: dict[str, Tensor] = {}
    for stage, prefix, official in NAMES:
        for name, value in stages[stage].items():
            if name.startswith(prefix):
                kept = value.half() if value.is_floating_point() else value
                if not bool(torch.isfinite(kept).all()):
                    raise ValueError(
                        f"pack: got values beyond float16 in {official}{name.removeprefix(prefix)}."
                    )
                tensors[official + name.removeprefix(prefix)] = kept.contiguous().clone()
    return tensors


def pack(folder: Path, out: Path, config: dict[str, Any]) -> None:
    """Writes `out/model.safetensors` and `out/config.yaml` from the checkpoints in `folder`."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / "model.safetensors.part"
    part.write_bytes(save(official_tensors(folder)))
    os.replace(part, out / "model.safetensors")
    text = yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False)
    (out / "config.yaml").write_text(text, encoding="utf-8")
