"""The full-size networks have exactly the names and shapes of the published checkpoints."""

from fnmatch import fnmatchcase

import pytest
import torch

from jscc.export.codecs import SWIN_REBUILT
from jscc.export.models.autoencoder import Autoencoder
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.models.swin import DeepJsccSwin
from jscc.export.models.text import TextTower
from jscc.export.models.unet import Control, Unet
from jscc.export.recognise import recognise

# The published configuration (Stable Diffusion 2.1).
TRUNK = {
    "use_checkpoint": True,
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 1024,
    "legacy": False,
}
CONTROL = {**TRUNK, "hint_channels": 4, "use_snr": True, "min_snr": 0, "snr_scale": 100}
FIRST_STAGE = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}
CODEC = {
    "input_nc": 3,
    "ngf": 64,
    "max_ngf_E": 384,
    "max_ngf_D": 384,
    "n_downsample": 4,
    "norm": "batch",
    "C_channel": 4,
    "output_nc": 3,
    "n_blocks_E": 4,
    "n_blocks_D": 4,
    "channel": "AWGN",
}
SWIN = {
    "img_size_h": 256,
    "img_size_w": 256,
    "patch_size": 2,
    "in_chans": 3,
    "embed_dims": [128, 192, 256, 320],
    "embed_dims_d": [320, 256, 192, 128],
    "depths": [2, 2, 2, 2],
    "depths_d": [2, 2, 2, 2],
    "num_heads": [4, 6, 8, 10],
    "num_heads_d": [10, 8, 6, 4],
    "bottleneck_dim": 4,
    "window_size": 8,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "qk_scale": None,
    "patch_norm": True,
}
LIST = "diffjscc_control_ldm.txt"
# In the text tower's checkpoint without influence on its output: the last of 24 blocks, and these.
TEXT_UNUSED = ("transformer.resblocks.23.*", "text_projection", "logit_scale")


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def below(keys, prefix, ignore=()):
    """The entries of `keys` below `prefix` that do not match a pattern of `ignore`."""
    names = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
    kept = {
        short: keys[key]
        for short, key in names.items()
        if not any(fnmatchcase(short, pattern) for pattern in ignore)
    }
    assert kept
    return kept


@pytest.mark.parametrize(
    ("build", "prefix", "ignore"),
    [
        (lambda: Unet.from_config({**TRUNK, "out_channels": 4}), "model.diffusion_model.", ()),
        (lambda: Control.from_config(CONTROL), "control_model.", ()),
        (
            lambda: TextTower.from_config({"layer": "penultimate"}),
            "cond_stage_model.model.",
            TEXT_UNUSED,
        ),
        (lambda: Autoencoder.from_config(FIRST_STAGE), "first_stage_model.", ()),
        (lambda: DeepJscc.from_config(CODEC), "preprocess_model.", ()),
    ],
    ids=["unet", "control", "text", "autoencoder", "codec"],
)
def test_keys_of_control_ldm(full_size_keys, build, prefix, ignore):
    with torch.device("meta"):
        module = build()
    assert shapes(module) == below(full_size_keys(LIST), prefix, ignore)


def test_keys_of_the_condition_encoder(full_size_keys):
    with torch.device("meta"):
        module = Autoencoder.from_config(FIRST_STAGE)
    own = {
        name: shape
        for name, shape in shapes(module).items()
        if name.startswith(("encoder.", "quant_conv."))
    }
    assert own == below(full_size_keys(LIST), "cond_encoder.")


def test_every_key_of_control_ldm_has_an_owner(full_size_keys):
    """All but the 13 buffers of the noise schedule, which follow from the configuration."""
    owners = ("model.", "control_model.", "cond_stage_model.", "first_stage_model.")
    owners += ("preprocess_model.", "cond_encoder.")
    left = [key for key in full_size_keys(LIST) if not key.startswith(owners)]
    assert len(left) == 13
    assert "betas" in left


def test_keys_of_the_swin_codec(full_size_keys):
    with torch.device("meta"):
        module = DeepJsccSwin.from_config(SWIN)
    ignore = (*SWIN_REBUILT, "decoder.absolute_pos_embed")
    keys = below(full_size_keys("diffjscc_swin.txt"), "", ignore)
    assert shapes(module) == keys


def test_control_without_snr_has_the_keys_of_diffbir(full_size_keys):
    params = {key: value for key, value in CONTROL.items() if "snr" not in key}
    with torch.device("meta"):
        module = Control.from_config(params)
    assert shapes(module) == below(full_size_keys(LIST), "control_model.", ("snr_embed.*",))


def test_names_tell_the_codec_of_control_ldm(full_size_keys):
    """All of the published configuration but the normalisation, which has one form here."""
    found = recognise(full_size_keys(LIST))
    expected = {key: value for key, value in CODEC.items() if key != "norm"}
    assert dict(found.config) == {"family": "diffjscc_cnn", **expected}
    assert len(found.names) == len(below(full_size_keys(LIST), "preprocess_model."))


def test_names_tell_the_swin_codec(full_size_keys):
    """Windows and their shifts instead of the image size that they follow from."""
    keys = full_size_keys("diffjscc_swin.txt")
    found = recognise(keys)
    assert found.family.name == "diffjscc_swin"
    lists = ("embed_dims", "depths", "num_heads", "embed_dims_d", "depths_d", "num_heads_d")
    assert {name: found.config[name] for name in lists} == {name: SWIN[name] for name in lists}
    told, known = DeepJsccSwin.from_config(found.config), DeepJsccSwin.from_config(SWIN)
    assert (told.down, told.up, told.multiple) == (known.down, known.up, known.multiple)
    assert shapes(told) == shapes(known)
