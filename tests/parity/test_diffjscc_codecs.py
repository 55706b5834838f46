"""DiffJSCC around its other two codecs, for Rayleigh fading and with shifted windows."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

import tiny_checkpoint
from jscc.export.cli import main
from jscc.export.gather import Request, gather
from jscc.export.system import Options, find
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    from jscc.export.system import Plan

# One level of everything and one size: what is looked at is how the codec is put in.
CODECS: dict[str, dict[str, Any]] = {
    "rayleigh": {**tiny_checkpoint.CODEC["params"], "n_downsample": 2, "channel": "Rayleigh"},
    "swin": {
        **tiny_checkpoint.SWIN["params"],
        "embed_dims": [8],
        "embed_dims_d": [8],
        "depths": [2],
        "depths_d": [2],
        "num_heads": [2],
        "num_heads_d": [2],
        "channel": "Rayleigh",
    },
}
TARGETS = {"rayleigh": tiny_checkpoint.CODEC["target"], "swin": tiny_checkpoint.SWIN["target"]}
SIZE = (32, 48)
GAIN = 0.6 - 0.9j
CSI = Csi(snr_db=5.0, gain=GAIN)

pytestmark = pytest.mark.exhaustive  # a whole ControlLDM each


class Exported(NamedTuple):
    """A bundle, the torch modules that it was made of, and which codec it has."""

    bundle: Bundle
    plan: Plan
    codec: str


@pytest.fixture(scope="module", params=CODECS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    name: str = request.param
    config = copy.deepcopy(tiny_checkpoint.LDM)
    params = config["params"]
    for part in ("control_stage_config", "unet_config"):
        params[part]["params"].update(channel_mult=[1], attention_resolutions=[])
    params["first_stage_config"]["params"]["ddconfig"]["ch_mult"] = [1, 1]
    params["preprocess_config"] = {"target": TARGETS[name], "params": CODECS[name]}
    folder = tiny_checkpoint.write_control_ldm(tmp_path_factory.mktemp("ldm") / "x", config)
    path = folder.parent / "x.jscc"
    command = ["--model", "diffjscc", "--checkpoint", str(folder), "-o", str(path)]
    assert main([*command, "--size", "x".join(map(str, SIZE))]) == 0
    system = find("diffjscc")
    source, _ = gather(system, Request((str(folder),)))
    return Exported(Bundle.open(path), system.plan(source, Options()), name)


def test_a_picture_goes_through(exported: Exported) -> None:
    """Only the fading codec is told the gain, and only its symbols are divided by it."""
    bundle, plan, codec = exported
    told = codec == "rayleigh"
    signal = bundle.manifest.signal
    assert signal.csi_inputs == (("snr_db", "gain") if told else ("snr_db",))
    assert signal.equalisation == ("zero_forcing" if told else "none")
    image = np.random.default_rng(4).integers(0, 256, (*SIZE, 3), np.uint8)
    symbols = Transmitter(bundle).send(image, csi=CSI)
    backend = RecordingBackend()
    receiver = Receiver(bundle, backend=backend)
    received = (GAIN * symbols).astype(np.complex64)
    picture, record = receiver.receive(received, CSI, seed=2, steps=2)
    assert picture.shape == image.shape
    assert record.snr_db_used == 5.0
    again, _ = receiver.receive(received, CSI, seed=2, steps=2)
    np.testing.assert_array_equal(picture, again)

    stages = {spec.name: spec.build() for spec in plan.stages if spec.name in ("encode", "decode")}
    csi = [torch.tensor([5.0]), torch.tensor([[GAIN.real, GAIN.imag]])][: 2 if told else 1]
    x = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    planes = stages["encode"](x, *csi)[0].numpy()
    sent = planes[: len(planes) // 2] + 1j * planes[len(planes) // 2 :]
    sent /= np.sqrt((np.abs(sent) ** 2).mean())
    assert np.abs(symbols - sent).max() <= 2e-5
    heard = sent if told else GAIN * sent
    given = np.concatenate((heard.real, heard.imag))[None].astype(np.float32)
    expected = stages["decode"](torch.from_numpy(given), *csi).numpy()
    assert np.abs(backend.outputs("decode")[-1]["reconstruction"] - expected).max() <= 2e-5
