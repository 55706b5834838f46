"""Fixtures that every test may use; the bundles themselves are in support/tiny_bundle.py."""

import contextlib
import functools
import json
import logging
import sys

import pytest
from hypothesis import settings

import tiny_bundle
from host_kernels import LaterHost
from jscc.__main__ import main

# torch logs every step of a trace here at DEBUG, and pytest's capture would make it write them.
logging.getLogger("torch.__trace").disabled = True


# A stall of the machine is no example that fails.
settings.register_profile("jscc", deadline=None)
settings.load_profile("jscc")


def pytest_collection_modifyitems(items):
    """Files with slow tests first: of two processes, none is left with a long file at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Let torch's exporter list its operators once; it reads all their sources for every graph."""
    if "jscc.export.lower" in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):  # other versions have other names
            from torch.onnx._internal.exporter import _registration

            library = _registration.onnxscript_apis
            library.get_torchlib_ops = functools.cache(library.get_torchlib_ops)


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


@pytest.fixture
def tensorrt_takes(tmp_path, capsys):
    """Holds a bundle's graphs to TensorRT for RTX, which compiles them without a device.

    For modules that export a system anyway; what the engines compute needs a device.
    """
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")

    def take(bundle, *, shapes="1x32x32-2x64x64"):
        options = ("--ahead", "sm_89", "--shapes", shapes, "-o", str(tmp_path / "engines"))
        capsys.readouterr()
        status = main(["build", str(bundle.path), *options, "--json"])
        told, refusals = capsys.readouterr()
        assert status == 0, refusals
        engines = json.loads(told)["engines"]
        assert {each["stage"] for each in engines} == set(bundle.manifest.stages)
        assert all(each["size"] > 0 for each in engines)

    return take
