"""Fixtures that every test may use; the bundles themselves are in support/tiny_bundle.py."""

import logging

import pytest

import tiny_bundle
from host_kernels import LaterHost

# torch logs every step of a trace here at DEBUG, and pytest's capture would make it write them.
logging.getLogger("torch.__trace").disabled = True


@pytest.fixture
def codec_bundle(tmp_path):
    """A written bundle with stages encode and decode, and a self-test."""
    return tiny_bundle.write_codec(tmp_path / "codec.jscc")


@pytest.fixture
def diffusion_bundle(tmp_path):
    """A written bundle with a loop, external weights, a constant and a side input."""
    return tiny_bundle.write_diffusion(tmp_path / "diffusion.jscc")


@pytest.fixture
def codec_checkpoint(tmp_path):
    """A folder with a tiny codec's ``model.ckpt`` and ``config.yaml``, random weights."""
    import tiny_checkpoint  # torch, which tests of the runtime can do without

    return tiny_checkpoint.write_codec(tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def shared_bundles(tmp_path_factory):
    """Both bundles, written once; tests read them and never change them."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "codec": tiny_bundle.write_codec(folder / "codec.jscc"),
        "diffusion": tiny_bundle.write_diffusion(folder / "diffusion.jscc"),
    }


@pytest.fixture(scope="session")
def later_host(tmp_path_factory):
    """Kernels for a fake device that few tests launch something on."""
    return LaterHost(tmp_path_factory)
