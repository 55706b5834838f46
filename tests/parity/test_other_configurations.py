"""Configurations other than the published ones lower to what torch computes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tiny_checkpoint
from jscc.export.cli import main
from jscc.export.gather import Request, gather
from jscc.export.system import Options, find
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.exhaustive


def config_with(**changes: Any) -> dict[str, Any]:
    """`tiny_checkpoint.LDM` with other widths, two residual blocks a level and C = 16."""
    config = copy.deepcopy(tiny_checkpoint.LDM)
    params = config["params"]
    for part in ("control_stage_config", "unet_config"):
        params[part]["params"].update(changes)
    params["preprocess_config"]["params"]["C_channel"] = 16
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_with(
        model_channels=64, channel_mult=[1, 2, 2, 3], num_res_blocks=2, attention_resolutions=[4, 2]
    )
    return tiny_checkpoint.write_control_ldm(tmp_path_factory.mktemp("other") / "x", config)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    path = folder.parent / "other.jscc"
    command = ["--model", "diffjscc", "--checkpoint", str(folder), "-o", str(path)]
    assert main(command) == 0
    return Bundle.open(path)


def test_thirteen_residuals_and_a_negative_snr_offset(bundle: Bundle, folder: Path) -> None:
    """The fused graph against the torch modules, at a size it was neither traced nor proved at."""
    source, _ = gather(
        find("diffjscc"),
        Request((str(folder),)),
    )
    plan = find("diffjscc").plan(source, Options())
    module = next(spec for spec in plan.stages if spec.name == "denoise").build()
    assert module.control.residual_count == 13
    rng = np.random.default_rng(5)
    feeds = {
        "latent": rng.standard_normal((3, 4, 8, 40), np.float32),
        "timestep": np.array([0, 500, 999], np.float32),
        "hint": rng.standard_normal((3, 4, 8, 40), np.float32),
        "context_kv": np.repeat(bundle.tensor("context_kv"), 3, axis=0),
        "snr_db": np.array([-3.25, 4.0, 17.5], np.float32),
    }
    with torch.no_grad():
        expected = module(*(torch.from_numpy(array) for array in feeds.values())).numpy()
    entry = bundle.manifest.stages["denoise"]
    backend = OnnxRuntimeBackend(threads=1)
    session = backend.load("denoise", entry, bundle.graph("denoise"), bundle.external("denoise"))
    computed = session.run(feeds)["clean"]
    assert np.abs(computed - expected).max() <= 2e-5 * np.abs(expected).max()


def test_shared_condition_encoder_is_stored_once(bundle: Bundle) -> None:
    condition = bundle.manifest.stages["condition"]
    assert [port.name for port in condition.outputs] == ["hint"]
    assert bundle.manifest.loops["denoise"].guide == "hint"


def test_batch_norms_are_gone(bundle: Bundle) -> None:
    for stage in ("encode", "decode"):
        assert b"BatchNormalization" not in bundle.graph(stage)


def test_signal_contract_comes_from_the_configuration(bundle: Bundle) -> None:
    signal = bundle.manifest.signal
    assert (signal.planes, signal.stride, signal.snr_db_range) == (16, 16, (0.0, 14.0))
    assert bundle.manifest.image.multiple == 64
