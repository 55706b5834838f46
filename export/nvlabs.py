"""NVlabs: StyleGAN2-ADA pickles to the layout that this package exports; runs where *you* say.

    python -m jscc.export.nvlabs --repo stylegan2-ada-pytorch network.pkl network.safetensors
    jscc-export --model inverse_jscc --checkpoint generator=network.safetensors ...

A network pickle of NVlabs holds Python source and runs it when it is opened, with modules of the
repository that wrote it. The exporter therefore never opens one. This program does, in an
environment of yours that has that repository, torch, and (for ``.safetensors``) safetensors, by
calling the repository's own loader; of this package it needs `jscc.runtime.errors` only. Give it
nothing that you do not trust.

`convert` is pure: names and values of a state dict. It is derived from the published key lists and
the conventions written below and tested against an independent implementation of them; it was never
run on a real NVlabs pickle. NVIDIA's weights have a licence of their own (non-commercial).

Conventions (Karras et al., "Training Generative Adversarial Networks with Limited Data",
arXiv 2006.06676, and its code's layout), ADA → rosinality:

- ``mapping.fc{i}``: the same weights, both scale them by 0.01 / sqrt(inputs) → ``style.{i+1}``
- ``b{res}.conv{0,1}.weight`` has no gain, ours 1 / sqrt(fan-in): demodulation removes either
- ``torgb.weight`` has the gain 1 / sqrt(fan-in) in both
- ``affine``: unit gain on biases, 1 / sqrt(inputs) on weights, in both → ``modulation``
- ``conv0`` enlarges by a transposed convolution with the stored, unturned kernel, as ours does
- ``resample_filter`` sums to 1 and is scaled by 4 when used; ours is stored scaled
- ``noise_const`` times the scalar ``noise_strength`` → ``noises.noise_{n}``, ``noise.weight`` [1]
- ``mapping.w_avg`` → ``latent_avg``

Not expressible and refused: label embeddings, the ``resnet`` and ``orig`` architectures, and
anything else with other names. The clamp of half-precision runs (256) is left out.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jscc.runtime.errors import CheckpointError, JsccError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_LISTED = 10
UPSAMPLED = 4  # gain of a filter behind an enlargement by two along both axes
BLOCK = re.compile(r"synthesis\.b(\d+)\.(.+)")
MAPPING = re.compile(r"mapping\.fc(\d+)\.(weight|bias)")
AFFINE = {
    "affine.weight": "conv.modulation.weight",
    "affine.bias": "conv.modulation.bias",
}


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The generator `state` (``G_ema.state_dict()``) in rosinality's layout.

    Raises:
        CheckpointError: ``E_CKPT_LAYOUT``, there are other weights than a skip generator's.
    """
    converted: dict[str, torch.Tensor] = {}
    strangers = []
    for name, tensor in state.items():
        found = _convert(name, tensor)
        if found is None:
            strangers.append(name)
        else:
            converted.update(found)
    if strangers or "input.input" not in converted:
        listed = ", ".join(strangers[:MAX_LISTED]) or f"only {', '.join(list(state)[:MAX_LISTED])}"
        raise CheckpointError(
            "E_CKPT_LAYOUT",
            f"network: got weights {listed}, expected those of an unconditional StyleGAN2-ADA "
            "generator of the 'skip' architecture. Convert another network.",
        )
    return converted


def _convert(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """What becomes of one tensor; None for one that has no place."""
    if name == "mapping.w_avg":
        return {"latent_avg": tensor}
    mapped = MAPPING.fullmatch(name)
    if mapped is not None:
        return {f"style.{int(mapped[1]) + 1}.{mapped[2]}": tensor}
    found = BLOCK.fullmatch(name)
    if found is None:
        return None
    edge, rest = int(found[1]), found[2]
    block = edge.bit_length() - 3  # 4 pixels: block 0
    if block < 0 or edge != 4 << block:
        return None
    return _of_block(block, rest, tensor)


def _of_block(block: int, rest: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """What becomes of the tensor `rest` of block number `block`."""
    if rest == "const":
        return {"input.input": tensor.unsqueeze(0)} if block == 0 else None
    if rest == "resample_filter":  # enlarges the colours; the lowest block has none
        upsample = {f"to_rgbs.{block - 1}.upsample.kernel": tensor * UPSAMPLED}
        return upsample if block else {}
    layer, _, leaf = rest.partition(".")
    if layer == "torgb":
        return _of_colours("to_rgb1" if block == 0 else f"to_rgbs.{block - 1}", leaf, tensor)
    if layer == "conv1" or (layer == "conv0" and block):
        number = 0 if block == 0 else 2 * block - (layer == "conv0")
        prefix = "conv1" if block == 0 else f"convs.{number - 1}"
        return _of_layer(prefix, number, leaf, tensor, enlarges=layer == "conv0")
    return None


def _of_colours(prefix: str, leaf: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    if leaf == "weight":
        return {f"{prefix}.conv.weight": tensor.unsqueeze(0)}
    if leaf == "bias":
        return {f"{prefix}.bias": tensor.reshape(1, -1, 1, 1)}
    return {f"{prefix}.{AFFINE[leaf]}": tensor} if leaf in AFFINE else None


def _of_layer(
    prefix: str, number: int, leaf: str, tensor: torch.Tensor, *, enlarges: bool
) -> dict[str, torch.Tensor] | None:
    if leaf == "weight":
        return {f"{prefix}.conv.weight": tensor.unsqueeze(0)}
    if leaf == "bias":
        return {f"{prefix}.activate.bias": tensor}
    if leaf == "noise_strength":
        return {f"{prefix}.noise.weight": tensor.reshape(1)}
    if leaf == "noise_const":
        return {f"noises.noise_{number}": tensor.unsqueeze(0).unsqueeze(0)}
    if leaf == "resample_filter":
        return {f"{prefix}.conv.blur.kernel": tensor * UPSAMPLED} if enlarges else {}
    return {f"{prefix}.{AFFINE[leaf]}": tensor} if leaf in AFFINE else None


def load_network(path: Path, repository: Path) -> Mapping[str, torch.Tensor]:
    """Open a network pickle with the loader of NVlabs' `repository`: this runs what is in it.

    Raises:
        UsageError: ``E_REPO``, no such repository lies there.
    """
    if not (repository / "legacy.py").is_file():
        raise UsageError(
            "E_REPO",
            f"--repo: got {str(repository)!r}, expected a copy of stylegan2-ada-pytorch, with "
            "legacy.py, dnnlib and torch_utils. Name its folder.",
        )
    sys.path.insert(0, str(repository.resolve()))
    try:
        legacy: Any = importlib.import_module("legacy")
        with path.open("rb") as file:
            network = legacy.load_network_pkl(file)["G_ema"]
    finally:
        sys.path.remove(str(repository.resolve()))
    state: Mapping[str, torch.Tensor] = network.state_dict()
    return state


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write `tensors` as ``.safetensors``, or with any other suffix in rosinality's container."""
    whole = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(whole, path)
        return
    average = whole.pop("latent_avg", None)
    torch.save({"g_ema": whole} | ({} if average is None else {"latent_avg": average}), path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jscc.export.nvlabs",
        description="Convert an NVlabs StyleGAN2-ADA pickle. Opening one runs the code inside it.",
    )
    parser.add_argument("network", type=Path, metavar="NETWORK.pkl")
    parser.add_argument("output", type=Path, metavar="OUT.safetensors|OUT.pt")
    parser.add_argument(
        "--repo", type=Path, default=Path(), help="folder of stylegan2-ada-pytorch; default: here"
    )
    arguments = parser.parse_args(argv)
    try:
        converted = convert(load_network(arguments.network, arguments.repo))
    except JsccError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    save(converted, arguments.output)
    sys.stdout.write(f"{arguments.output}: {len(converted)} tensors\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
