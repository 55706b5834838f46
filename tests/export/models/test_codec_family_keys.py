"""Codecs of other authors at their published sizes: names, shapes and counts of parameters."""

import ast
import re
from pathlib import Path

import pytest
import torch

from jscc.export.models.af import Af
from jscc.export.models.pdjscc import Pdjscc

LIST = Path(__file__).resolve().parents[4] / "shared" / "keys" / "jscc_codecs.txt"

# Title of the list's part → the network's half.
PARTS = {
    "FeatureEncoderAF(3,256,240) regular": lambda: Af(256, 240).encoder,
    "FeatureDecoderAF(240,256,3) regular": lambda: Af(256, 240).decoder,
    "reduced (/4) FeatureEncoderAF(3,256,16)": lambda: Af(256, 16, "reduced").encoder,
    "reduced FeatureDecoderAF(16,256,3)": lambda: Af(256, 16, "reduced").decoder,
    **{
        f"Perceptual-DeepJSCC Encoder C={planes} ": lambda planes=planes: (
            Pdjscc(256, planes).encoder
        )
        for planes in (2, 4, 6)
    },
    **{
        f"Perceptual-DeepJSCC Decoder(=generator) C={planes} ": (
            lambda planes=planes: Pdjscc(256, planes).decoder
        )
        for planes in (2, 4, 6)
    },
}


@pytest.fixture(scope="module")
def listed():
    """Part of the list → parameters in all, and shape by name in order."""
    if not LIST.is_file():
        pytest.skip(f"no key list at {LIST}")
    parts = {}
    for block in re.split(r"^=+\n", LIST.read_text(), flags=re.MULTILINE)[1:]:
        title, *lines = block.splitlines()
        count = next(line for line in lines if line.startswith("# params "))
        rows = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
        shapes = {name: ast.literal_eval(shape) for name, shape in rows}
        parts[title] = (int(count.split()[2].rstrip(";").replace(",", "")), shapes)
    return parts


@pytest.mark.parametrize("title", PARTS)
def test_names_and_shapes_are_the_published_ones(listed, title):
    matching = [part for name, part in listed.items() if title in name]
    assert len(matching) == 1
    count, shapes = matching[0]
    with torch.device("meta"):
        network = PARTS[title]()
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert own == shapes
    assert sum(parameter.numel() for parameter in network.parameters()) == count
