"""Fixtures of the commands: a bundle with both ends and a loop, a picture, and a way to call."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_bundle
from jscc.__main__ import main
from jscc.runtime.bundle import write_bundle


@dataclass(frozen=True)
class Ran:
    """What a call of a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        """The result, which must be all of stdout."""
        return json.loads(self.out)


@pytest.fixture
def jscc(capsys):
    """Calls a command in this process."""

    def call(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Ran(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def link_bundle(tmp_path_factory):
    """A bundle with a transmitter, a receiver with a loop, and a side input."""
    manifest, files = tiny_bundle.diffusion()
    codec_manifest, codec_files = tiny_bundle.codec()
    files["graphs/encode.onnx"] = codec_files["graphs/encode.onnx"]
    stages = {**manifest.stages, "encode": codec_manifest.stages["encode"]}
    path = tmp_path_factory.mktemp("link") / "link.jscc"
    return write_bundle(path, replace(manifest, stages=stages), files)


@pytest.fixture
def codec(shared_bundles):
    """Path of the bundle of a codec."""
    return shared_bundles["codec"].path


@pytest.fixture
def context(tmp_path):
    """The side input of `link_bundle`."""
    path = tmp_path / "context.npy"
    np.save(path, np.linspace(-1, 1, 10, dtype=np.float32).reshape(1, 2, 5))
    return path


@pytest.fixture
def photo(tmp_path):
    """A picture of 21x30 pixels, no multiple of anything."""
    return make_photo(tmp_path / "photo.png", 21, 30)


def make_photo(path: Path, height: int, width: int) -> Path:
    """A smooth colour picture."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 200 // width, y * 200 // height, 100 + x - y], axis=-1)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def second_photo(tmp_path):
    """A picture of another size."""
    return make_photo(tmp_path / "second.png", 40, 16)
