"""The configurations of published networks build what was published, and are found by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from jscc.export.checkpoint import read_config
from jscc.export.gather import Request, gather
from jscc.export.models.adm import Adm
from jscc.export.models.af import Af
from jscc.export.models.autoencoder import Autoencoder
from jscc.export.models.bourtsoulatze import Bourtsoulatze
from jscc.export.models.ddim_unet import DdimUnet
from jscc.export.models.pdjscc import Pdjscc
from jscc.export.models.stylegan2 import Generator
from jscc.export.models.swinjscc import Decoder, Encoder, Layout
from jscc.export.models.unet import Control, Unet
from jscc.export.priors import OWN
from jscc.export.roles import architecture_names, config_path
from jscc.export.system import Options, find
from jscc.runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def swinjscc(params: dict[str, Any]) -> nn.Module:
    layout = Layout.from_config(params)
    return torch.nn.ModuleList([Encoder(layout), Decoder(layout)])


def control_ldm(config: dict[str, Any]) -> nn.Module:
    """Denoiser, control module and autoencoder of DiffJSCC."""
    parts = config["params"]
    return torch.nn.ModuleList(
        [
            Unet.from_config(parts["unet_config"]["params"]),
            Control.from_config(parts["control_stage_config"]["params"]),
            Autoencoder.from_config(parts["first_stage_config"]["params"]),
        ]
    )


FAMILIES = {
    "adm": Adm.from_config,
    "ddim": DdimUnet.from_config,
    "af": Af.from_config,
    "pdjscc": Pdjscc.from_config,
    "bourtsoulatze": Bourtsoulatze.from_config,
    "stylegan2": Generator.from_config,
    "swinjscc": swinjscc,
    "model.cldm.ControlLDM": control_ldm,
}
# What the checkpoints hold, counted there.
PARAMETERS = {
    "diffjscc_c16": 865_910_724 + 365_203_840 + 83_653_863,
    "ffhq_10m": 93_563_910,
    "celeba_hq": 113_673_219,
    "iddpm_ffhq512": 159_788_454,
    "openai_256": 552_814_086,
    "deepwive": 11_061_568 + 23_394_083,
    "pdjscc_48": 5_288_332 + 10_646_696,
    "stylegan2_256": 30_034_338,
    "stylegan2_1024": 30_370_060,
    "swinjscc_sa_ra": 19_004_696 + 14_068_792,
    "bourtsoulatze": None,
    "swinjscc_base": None,  # its files hold modulations, too, that nothing uses
}


def test_none_is_left_out() -> None:
    assert set(architecture_names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", architecture_names())
def test_the_network_has_the_published_size(name: str) -> None:
    config = read_config(config_path(f"architecture:{name}"))
    params = {key: value for key, value in config.items() if key not in OWN}
    with torch.device("meta"):
        network = FAMILIES[config.get("family", config.get("target"))](params)
    count = sum(each.numel() for each in network.parameters())
    assert count == (PARAMETERS[name] or count)


def test_a_name_stands_for_a_file_in_an_export() -> None:
    request = Request(configs=("architecture:bourtsoulatze",), random_seed=1)
    source, _ = gather(find("deepjscc"), request)
    assert source.config["c_out"] == 16
    plan = find("deepjscc").plan(source, Options())
    assert [stage.name for stage in plan.stages] == ["encode", "decode"]


def test_other_texts_are_paths_and_unknown_names_list_what_there_is() -> None:
    assert config_path("some/config.yaml") == Path("some/config.yaml")
    with pytest.raises(UsageError, match=r"got 'ffhq', expected one of bourtsoulatze, celeba_hq,"):
        config_path("architecture:ffhq")
