"""LPIPS weights: the published files, turned into the two that measurements and trainings read.

    python -m jscc.export.lpips_weights alexnet-owt-7be5be79.pth alex.pth DIR

The first is torchvision's AlexNet, the second the heads in ``lpips/weights/v0.1`` of
richzhang/PerceptualSimilarity; one file that the package ``lpips`` has stored will do too. Neither
is part of this project.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from jscc.export.checkpoint import load_into, merge, read_checkpoint
from jscc.export.load import rename
from jscc.export.models.lpips import Lpips
from jscc.export.recognise import find_family, must_match
from jscc.export.reference.perceptual import FEATURES_FILE, HEADS_FILE
from jscc.export.tensor_file import form
from jscc.runtime.terminal import Parser, run

if TYPE_CHECKING:
    from collections.abc import Sequence


def read(paths: Sequence[Path]) -> Lpips:
    """The network of one or several published files.

    Raises:
        CheckpointError: ``E_CKPT_FAMILY``, they are not all of its weights.
    """
    where = " + ".join(path.name for path in paths)
    tensors = merge([read_checkpoint(path).tensors for path in paths])
    shapes = {name: form(tensors, name)[0] for name in tensors}
    found = must_match(find_family("lpips", where), shapes, where)
    with torch.device("meta"):
        network = Lpips()
    return load_into(network, rename(tensors, found.names), where=where)


def write(network: Lpips, folder: Path) -> None:
    """The features as float16 and the heads as they are, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    features = {name: state[name].half() for name in state if name.startswith("features.")}
    save_file(features, folder / FEATURES_FILE)
    heads = {name: tensor for name, tensor in state.items() if name not in features}
    save_file(heads, folder / HEADS_FILE)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = Parser(
        prog="python -m jscc.export.lpips_weights",
        description="Make the folder that --lpips-weights names.",
    )
    parser.add_argument("file", nargs="+", type=Path, help="published weights")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the two files go")
    arguments = parser.parse_args(argv)
    write(read(arguments.file), arguments.folder)
    sys.stdout.write(f"{arguments.folder}: {FEATURES_FILE}, {HEADS_FILE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run("lpips_weights", main, sys.argv[1:]))
