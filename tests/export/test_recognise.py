"""A checkpoint's family is told by its names and shapes, whatever its trainer put around them."""

import pytest
import torch

from jscc.export import recognise as module
from jscc.export.models.af import VARIANTS, Af
from jscc.export.models.bourtsoulatze import Bourtsoulatze
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.models.pdjscc import Pdjscc
from jscc.export.recognise import find_family, must_match, recognise
from jscc.runtime.errors import CheckpointError, UsageError


def shapes_of(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def meta(build):
    with torch.device("meta"):
        return shapes_of(build())


CNNS = (
    {
        "input_nc": 3,
        "output_nc": 3,
        "ngf": 4,
        "max_ngf_E": 16,
        "max_ngf_D": 12,
        "n_downsample": 4,
        "n_blocks_E": 1,
        "n_blocks_D": 3,
        "C_channel": 6,
        "channel": "AWGN",
    },
    {
        "input_nc": 1,
        "output_nc": 1,
        "ngf": 6,
        "max_ngf_E": 24,
        "max_ngf_D": 24,
        "n_downsample": 3,
        "n_blocks_E": 2,
        "n_blocks_D": 1,
        "C_channel": 4,
        "channel": "Rayleigh",
    },
)
NETWORKS = {
    **{
        f"af-{variant}": (
            lambda variant=variant: Af(12, 6, variant),
            {"family": "af", "variant": variant, "c_feat": 12, "c_out": 6},
        )
        for variant in VARIANTS
    },
    "pdjscc": (lambda: Pdjscc(32, 2), {"family": "pdjscc", "c_feat": 32, "c_out": 2}),
    "bourtsoulatze": (lambda: Bourtsoulatze(8), {"family": "bourtsoulatze", "c_out": 8}),
    **{
        f"diffjscc_cnn-{config['channel']}": (
            lambda config=config: DeepJscc.from_config(config),
            {"family": "diffjscc_cnn", **config},
        )
        for config in CNNS
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_known_by_its_own_names(name):
    build, config = NETWORKS[name]
    shapes = meta(build)
    found = recognise(shapes)
    assert dict(found.config) == config
    assert found.names == {key: key for key in shapes}


@pytest.mark.parametrize("wrapper", ["module.", "model.", "net.", "module.model.", "_orig_mod."])
def test_wrappers_are_looked_through(wrapper):
    shapes = meta(NETWORKS["pdjscc"][0])
    found = recognise({wrapper + name: shape for name, shape in shapes.items()})
    assert found.config == {"family": "pdjscc", "c_feat": 32, "c_out": 2}
    assert found.names == {wrapper + name: name for name in shapes}


@pytest.mark.parametrize(
    ("encoder", "decoder"), [("Encoder", "Decoder"), ("jscc_encoder", "jscc_decoder")]
)
def test_halves_under_other_names_and_passengers(encoder, decoder):
    """What the perceptual codec's trainer saves beside the two networks is left out."""
    own = meta(NETWORKS["pdjscc"][0])
    stored = {
        name.replace("encoder", encoder, 1).replace("decoder", decoder, 1): shape
        for name, shape in own.items()
    }
    beside = {
        "distortion_loss.net.lin0.weight": (1, 64),
        "lpips_metric.net.slice1.0.weight": (64, 3, 3, 3),
        "Discriminator.conv1.weight_orig": (64, 15, 4, 4),
        "discriminator.layers.0.bias": (64,),
        "Encoder.total_ops": (1,),
        "val_metrics.psnr.total": (),
    }
    found = recognise({**beside, **stored})
    assert sorted(found.names.values()) == sorted(own)


def test_lists_of_layers_as_kaira_stores_them():
    """`g_a.{i}` and `g_s.{i}` of a Lightning module, its metrics beside them."""
    own = meta(NETWORKS["af-wz"][0])
    stored = {
        "net." + name.replace("encoder.layers", "g_a").replace("decoder.layers", "g_s"): shape
        for name, shape in own.items()
    }
    found = recognise({**stored, "val_lpips.net.lin0.model.1.weight": (1, 64, 1, 1)})
    assert found.config["variant"] == "wz"
    assert sorted(found.names.values()) == sorted(own)


def test_the_codec_of_a_whole_control_ldm():
    """What else it is made of is left out, strangers are not."""
    own = meta(NETWORKS["diffjscc_cnn-AWGN"][0])
    beside = {
        "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
        "model.diffusion_model.out.0.weight": (32,),
        "first_stage_model.loss.discriminator.main.0.bias": (64,),
        "sqrt_recip_alphas_cumprod": (1000,),
    }
    found = recognise(
        {**beside, **{f"preprocess_model.{name}": shape for name, shape in own.items()}}
    )
    assert dict(found.config) == NETWORKS["diffjscc_cnn-AWGN"][1]
    assert sorted(found.names.values()) == sorted(own)
    more = recognise({**own, "refiner.weight": (1,)})
    assert more.names["refiner.weight"] == "refiner.weight"


def test_a_codec_told_something_else_is_none_of_diffjscc_s():
    own = meta(NETWORKS["diffjscc_cnn-AWGN"][0])
    told = "E.res_list.1.model_multi.0.weight"
    assert recognise({**own, told: (own[told][0], own[told][0] + 2)}) is None


def test_first_residual_block_tells_two_authors_apart():
    """The decoder goes from M to N planes in its first block with one, behind it with the other."""
    wz, regular = meta(NETWORKS["af-wz"][0]), meta(NETWORKS["af-regular"][0])
    assert wz["decoder.layers.1.conv1.weight"] == (12, 6, 3, 3)
    assert regular["decoder.layers.rb1.conv1.weight"] == (6, 6, 3, 3)


def test_what_nobody_knows():
    assert recognise({"weight": (3, 3), "bias": (3,)}) is None
    assert recognise({}) is None


def test_a_family_that_the_weights_are_not_of():
    family = find_family("pdjscc", "--codec")
    with pytest.raises(CheckpointError, match=r"file: got weights a\.weight, …") as caught:
        must_match(family, {"a.weight": (1,)}, "file")
    assert caught.value.code == "E_CKPT_FAMILY"


def test_a_family_that_is_none():
    with pytest.raises(UsageError, match=r"--codec: got 'adjscc', expected one of .*pdjscc"):
        find_family("adjscc", "--codec")


def test_every_family_has_a_name_of_its_own():
    names = module.family_names()
    assert len(names) == len(set(names))
    assert {"af", "pdjscc", "bourtsoulatze"} <= set(module.family_names("codec"))
