"""A LoRA merged into the UNet computes what torch computes beside it; nothing of it gets lost."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import tiny_checkpoint
from jscc.export.checkpoint import read_checkpoint, read_config
from jscc.export.cli import main
from jscc.export.gather import Request, gather
from jscc.export.lora import merge_into, parse_lora, read_lora
from jscc.export.lora_keys import sort_keys
from jscc.export.models.unet import Unet
from jscc.export.models.unet_names import diffusers_names
from jscc.export.roles import config_path
from jscc.export.system import Options, find
from jscc.runtime.bundle import Bundle
from jscc.runtime.declared import needed_format
from jscc.runtime.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

torch.set_num_threads(1)

PREFIX = "model.diffusion_model."
PARAMS = tiny_checkpoint.LDM["params"]["unet_config"]["params"]
NAMED = {  # what diffusers calls layers of Stable Diffusion 2.1, and what the checkpoint does
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k": (
        "input_blocks.2.1.transformer_blocks.0.attn2.to_k"
    ),
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.1.resnets.1.time_emb_proj": "input_blocks.5.0.emb_layers.1",
    "down_blocks.2.attentions.1.transformer_blocks.0.ff.net.0.proj": (
        "input_blocks.8.1.transformer_blocks.0.ff.net.0.proj"
    ),
    "down_blocks.3.resnets.1.conv2": "input_blocks.11.0.out_layers.3",
    "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
    "mid_block.attentions.0.proj_out": "middle_block.1.proj_out",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "up_blocks.0.resnets.2.conv_shortcut": "output_blocks.2.0.skip_connection",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": (
        "output_blocks.3.1.transformer_blocks.0.ff.net.2"
    ),
    "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q": (
        "output_blocks.5.1.transformer_blocks.0.attn1.to_q"
    ),
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.upsamplers.0.conv": "output_blocks.8.2.conv",
    "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0": (
        "output_blocks.11.1.transformer_blocks.0.attn1.to_out.0"
    ),
    "conv_out": "out.2",
}

# Of the tiny UNet: one layer of every kind, own name and diffusers'.
LINEAR = ("middle_block.1.proj_in", "mid_block.attentions.0.proj_in")
OUTPUT = (
    "input_blocks.3.1.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
)
CONV = ("input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1")
POINT = ("output_blocks.0.0.skip_connection", "up_blocks.0.resnets.0.conv_shortcut")
STRIDED = ("input_blocks.2.0.op", "down_blocks.0.downsamplers.0.conv")
KINDS = {"linear": LINEAR, "output": OUTPUT, "conv": CONV, "point": POINT, "strided": STRIDED}

Keys = tuple[str, str, str]


def kohya(own: str, theirs: str) -> Keys:
    stem = "lora_unet_" + theirs.replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def kohya_own(own: str, theirs: str) -> Keys:
    return kohya(theirs, own)


def diffusers(own: str, theirs: str) -> Keys:
    stem = f"unet.{theirs}"
    return f"{stem}.lora.down.weight", f"{stem}.lora.up.weight", f"{stem}.alpha"


def diffusers_letters(own: str, theirs: str) -> Keys:
    stem = f"unet.{theirs}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"


def bare(own: str, theirs: str) -> Keys:
    return f"{theirs}.lora_A.weight", f"{theirs}.lora_B.weight", f"{theirs}.alpha"


def comfy(own: str, theirs: str) -> Keys:
    stem = f"diffusion_model.{own}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"


def peft(own: str, theirs: str) -> Keys:
    stem = f"base_model.model.{theirs}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"


def peft_adapter(own: str, theirs: str) -> Keys:
    stem = f"base_model.model.unet.{theirs}"
    return f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight", f"{stem}.alpha"


STYLES = (kohya, kohya_own, diffusers, diffusers_letters, bare, comfy, peft, peft_adapter)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def meta_unet(params: Mapping[str, Any] = PARAMS) -> Unet:
    with torch.device("meta"):
        return Unet.from_config(params)


def tiny_unet() -> Unet:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # biases are as they are built
        return tiny_checkpoint._drawn(Unet.from_config(PARAMS), seed=5).requires_grad_(False)


def pair_for(layer: str, rank: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random up and down matrices in the shapes in which they are published for `layer`."""
    shape = tuple(meta_unet().get_parameter(f"{layer}.weight").shape)
    up = drawn(shape[0], rank, *(1,) * (len(shape) - 2), seed=seed)
    return up, drawn(rank, *shape[1:], seed=seed + 1)


def state_of(
    style: Callable[[str, str], Keys], layers: Iterable[tuple[str, str]], alpha: float | None = None
) -> dict[str, torch.Tensor]:
    state = {}
    for number, names in enumerate(layers):
        down_key, up_key, alpha_key = style(*names)
        state[up_key], state[down_key] = pair_for(names[0], seed=2 * number)
        if alpha is not None:
            state[alpha_key] = torch.tensor(alpha)
    return state


def write(path: Path, state: dict[str, torch.Tensor], metadata: Any = None) -> Path:
    header = {"format": "pt"}
    if metadata is not None:
        header["lora_adapter_metadata"] = json.dumps(metadata)
    save_file(state, path, metadata=header)
    return path


def merged(text: str | Path, unet: Unet | None = None) -> Unet:
    module = tiny_unet() if unet is None else unet
    merge_into(module, [read_lora(str(text), PREFIX, meta_unet())])
    return module


def refused(
    path: Path, code: str, match: str, error: type[Exception] = CheckpointError, **options: Any
) -> None:
    with pytest.raises(error, match=match) as caught:
        read_lora(str(path), PREFIX, meta_unet(), **options)
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)


# Names.


@pytest.mark.parametrize(
    "params",
    [
        PARAMS,
        read_config(config_path("architecture:diffjscc_c16"))["params"]["unet_config"]["params"],
        {
            **PARAMS,
            "channel_mult": [1, 2, 2],
            "num_res_blocks": [1, 3, 2],
            "attention_resolutions": [1, 4],
            "transformer_depth": 2,
            "use_linear_in_transformer": False,
        },
    ],
    ids=["tiny", "2.1", "uneven"],
)
def test_every_layer_has_one_name_and_no_two_are_alike(params: dict[str, Any]) -> None:
    unet = meta_unet(params)
    names = diffusers_names(unet)
    layers = [name for name, each in unet.state_dict().items() if each.dim() > 1]
    assert {f"{name}.weight" for name in names} == set(layers)
    assert len(set(names.values())) == len(names)
    # Also with underscores for dots: every name alone finds its layer.
    for style in STYLES:
        keys = [key for item in names.items() for key in style(*item)]
        found, skipped = sort_keys("x", keys, names)
        assert skipped == 0
        assert {own: tuple(found[own].values()) for own in names} == {
            own: style(own, theirs) for own, theirs in names.items()
        }


def test_names_are_those_of_the_published_unet() -> None:
    params = read_config(config_path("architecture:diffjscc_c16"))["params"]["unet_config"]
    names = diffusers_names(meta_unet(params["params"]))
    assert {theirs: own for own, theirs in names.items() if theirs in NAMED} == NAMED
    assert len(names) == 282


# Merging.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES)
def test_merged_layer_is_base_plus_scaled_low_rank_branch(
    tmp_path: Path, style: Callable[[str, str], Keys], kind: str
) -> None:
    own, theirs = KINDS[kind]
    path = write(tmp_path / "x.safetensors", state_of(style, [(own, theirs)], alpha=1.5))
    base, unet = tiny_unet(), merged(f"{path}:0.5")
    layer, changed = base.get_submodule(own), unet.get_submodule(own)
    up, down = pair_for(own)
    x = drawn(2, layer.weight.shape[1], *(6, 5)[: layer.weight.dim() - 2], seed=9)
    if layer.weight.dim() == 2:
        branch = functional.linear(functional.linear(x, down), up)
    else:
        branch = functional.conv2d(
            functional.conv2d(x, down, stride=layer.stride, padding=layer.padding), up
        )
    expected = layer(x) + 0.5 * 1.5 / 3 * branch
    assert branch.abs().max() > 1
    torch.testing.assert_close(changed(x), expected, rtol=1e-5, atol=1e-5)
    others = {name: each for name, each in base.state_dict().items() if name != f"{own}.weight"}
    assert all(torch.equal(each, unet.state_dict()[name]) for name, each in others.items())


def test_old_attention_processors(tmp_path: Path) -> None:
    """Before, diffusers named the processor, and left out the index of the output projection."""
    block = "input_blocks.3.1.transformer_blocks.0.attn2"
    theirs = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor"
    state = {}
    for part, layer in (
        ("to_q", "to_q"),
        ("to_k", "to_k"),
        ("to_v", "to_v"),
        ("to_out", "to_out.0"),
    ):
        up, down = pair_for(f"{block}.{layer}")
        state[f"unet.{theirs}.{part}_lora.up.weight"] = up
        state[f"unet.{theirs}.{part}_lora.down.weight"] = down
    old = merged(write(tmp_path / "old.safetensors", state))
    layers = [f"{block}.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")]
    for layer in layers:
        up, down = pair_for(layer)
        weight = tiny_unet().get_parameter(f"{layer}.weight")
        torch.testing.assert_close(old.get_parameter(f"{layer}.weight"), weight + up @ down)
    torch.save(state, tmp_path / "pytorch_lora_weights.bin")  # their container at that time
    again = merged(tmp_path / "pytorch_lora_weights.bin")
    assert all(
        torch.equal(again.get_parameter(f"{name}.weight"), old.get_parameter(f"{name}.weight"))
        for name in layers
    )


def test_pointwise_convolutions_and_linear_layers_are_the_same(tmp_path: Path) -> None:
    """Stable Diffusion 1 convolves where 2 multiplies; tools write either for both."""
    for own, theirs in (LINEAR, POINT):
        up, down = (each.flatten(1) for each in pair_for(own))
        down_key, up_key, _ = kohya(own, theirs)
        flat = {down_key: down, up_key: up}
        deep = {down_key: down[..., None, None], up_key: up[..., None, None]}
        one, other = (
            merged(write(tmp_path / f"{own}.{name}", state)).get_parameter(f"{own}.weight")
            for name, state in (("flat", flat), ("deep", deep))
        )
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: each.to(dtype) for name, each in state_of(kohya, [CONV], alpha=2.0).items()}
    unet = merged(write(tmp_path / "x.safetensors", state))
    up, down = (each.to(dtype).double().flatten(1) for each in pair_for(CONV[0]))
    weight = tiny_unet().get_parameter(f"{CONV[0]}.weight")
    expected = weight.double() + (2 / 3 * (up @ down)).reshape(weight.shape)
    changed = unet.get_parameter(f"{CONV[0]}.weight")
    assert changed.dtype == torch.float32
    assert torch.equal(changed, expected.float())


def test_several_files_add_up_and_their_weights_count(tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors", state_of(kohya, [LINEAR, CONV]))
    second = write(tmp_path / "b.safetensors", state_of(peft, [CONV, POINT]))
    unet = tiny_unet()
    texts = (f"{first}:0.25", f"{second}:-2")
    merge_into(unet, [read_lora(text, PREFIX, meta_unet()) for text in texts])
    weight = tiny_unet().get_parameter(f"{CONV[0]}.weight")
    pairs = (pair_for(CONV[0], seed=2), pair_for(CONV[0], seed=0))
    products = [(up.flatten(1) @ down.flatten(1)).reshape(weight.shape) for up, down in pairs]
    expected = weight + 0.25 * products[0] - 2 * products[1]
    torch.testing.assert_close(unet.get_parameter(f"{CONV[0]}.weight"), expected)


def test_merging_leaves_the_tensors_that_it_was_given(tmp_path: Path) -> None:
    """Weights held in memory are assigned to every module that is built of them."""
    path = write(tmp_path / "x.safetensors", state_of(kohya, [LINEAR]))
    unet = tiny_unet()
    given = unet.get_parameter(f"{LINEAR[0]}.weight")
    before = given.clone()
    merged(path, unet)
    assert torch.equal(given, before)
    assert not torch.equal(unet.get_parameter(f"{LINEAR[0]}.weight"), before)


# Alpha.


def scale_of(path: Path) -> float:
    """What the product of the matrices of `LINEAR` was multiplied by."""
    lora = read_lora(str(path), PREFIX, meta_unet())
    return lora.pairs[LINEAR[0]].scale


def test_alpha_is_the_rank_where_nothing_states_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", state_of(kohya, [LINEAR, CONV]))
    assert scale_of(path) == 1.0
    lora = read_lora(str(path), PREFIX, meta_unet())
    assert lora.notes == ("alpha of 2 layers not stated, taken as the rank",)


@pytest.mark.parametrize("alpha", [torch.tensor(6.0), torch.tensor([6]), torch.tensor(6.0).half()])
def test_alpha_beside_the_matrices(tmp_path: Path, alpha: torch.Tensor) -> None:
    state = state_of(kohya, [LINEAR])
    state[kohya(*LINEAR)[2]] = alpha
    path = write(tmp_path / "x.safetensors", state)
    assert scale_of(path) == 2.0
    assert read_lora(f"{path}:0.5", PREFIX, meta_unet()).pairs[LINEAR[0]].scale == 1.0
    assert read_lora(str(path), PREFIX, meta_unet()).notes == ()


SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({"lora_alpha": 6, "r": 3}, 2.0),
    "rank-stabilised": ({"lora_alpha": 6, "r": 3, "use_rslora": True}, 6 / math.sqrt(3)),
    "own rank": ({"lora_alpha": 6, "r": 8, "rank_pattern": {"proj_in": 3}}, 2.0),
    "own alpha": ({"lora_alpha": 6, "r": 3, "alpha_pattern": {"to_q": 1, "proj_in": 9}}, 3.0),
    "alpha of a whole name": (
        {"lora_alpha": 6, "r": 3, "alpha_pattern": {f"^{LINEAR[1]}": 9}},
        3.0,
    ),
    "alpha of another": ({"lora_alpha": 6, "r": 3, "alpha_pattern": {"^proj_in": 9}}, 2.0),
    "all of peft's": (
        {
            "peft_type": "LORA",
            "lora_alpha": 6,
            "r": 3,
            "use_dora": False,
            "use_rslora": False,
            "init_lora_weights": "gaussian",
            "rank_pattern": {},
            "alpha_pattern": None,
            "target_modules": ["proj_in"],
            "bias": "none",
        },
        2.0,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_alpha_of_a_config_beside_the_file(tmp_path: Path, name: str) -> None:
    settings, expected = SETTINGS[name]
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    path = write(tmp_path / "adapter_model.safetensors", state_of(peft, [LINEAR]))
    assert scale_of(path) == pytest.approx(expected, rel=1e-12)
    lora = read_lora(str(path), PREFIX, meta_unet())
    assert lora.notes == ("alpha from adapter_config.json",)


@pytest.mark.parametrize("name", SETTINGS)
def test_alpha_in_the_header(tmp_path: Path, name: str) -> None:
    settings, expected = SETTINGS[name]
    tree = {f"unet.{key}": value for key, value in settings.items()}
    tree["text_encoder.lora_alpha"] = 77
    path = write(tmp_path / "x.safetensors", state_of(diffusers_letters, [LINEAR]), tree)
    assert scale_of(path) == pytest.approx(expected, rel=1e-12)
    lora = read_lora(str(path), PREFIX, meta_unet())
    assert lora.notes == ("alpha from lora_adapter_metadata",)


def test_a_config_beside_other_styles_is_not_theirs(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("no JSON")
    assert scale_of(write(tmp_path / "x.safetensors", state_of(kohya, [LINEAR]))) == 1.0


@pytest.mark.parametrize(
    ("text", "code", "match"),
    [
        ("{", "E_LORA_ALPHA", r"adapter_config.json: got .*, expected"),
        ("[]", "E_LORA_ALPHA", "got a list, expected an object"),
        ('{"r": 3, "r": 4}', "E_LORA_ALPHA", 'got the key "r" twice'),
        ('{"r": 3}', "E_LORA_ALPHA", "/lora_alpha: got None, expected a number above 0"),
        ('{"lora_alpha": 0, "r": 3}', "E_LORA_ALPHA", "/lora_alpha: got 0, expected a number"),
        ('{"lora_alpha": true, "r": 3}', "E_LORA_ALPHA", "/lora_alpha: got True"),
        ('{"lora_alpha": 1, "r": "3"}', "E_LORA_ALPHA", "/r: got '3'"),
        (
            '{"lora_alpha": 1, "r": 4}',
            "E_LORA_ALPHA",
            "got matrices of rank 3, expected r = 4 of adapter_config.json",
        ),
        (
            '{"lora_alpha": 1, "r": 3, "use_rslora": 1}',
            "E_LORA_ALPHA",
            "/use_rslora: got 1, expected true or false",
        ),
        (
            '{"lora_alpha": 1, "r": 3, "alpha_pattern": {"(a+)+": 1}}',
            "E_LORA_ALPHA",
            "/alpha_pattern: got .* expected names of layers and numbers",
        ),
        ('{"peft_type": "IA3"}', "E_LORA_KIND", "got peft_type 'IA3', expected a LoRA"),
        ('{"use_dora": true}', "E_LORA_KIND", "got use_dora, expected a LoRA"),
        ('{"init_lora_weights": "pissa"}', "E_LORA_KIND", "got init_lora_weights 'pissa'"),
        ('{"init_lora_weights": []}', "E_LORA_KIND", "got init_lora_weights \\[\\]"),
        (" " * (1 << 20) + "{}", "E_LORA_ALPHA", "got 1048577 bytes, expected at most 1048576"),
    ],
)
def test_refused_settings(tmp_path: Path, text: str, code: str, match: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    path = write(tmp_path / "adapter_model.safetensors", state_of(peft, [LINEAR]))
    refused(path, code, match)


def test_alpha_from_two_places(tmp_path: Path) -> None:
    state = state_of(diffusers, [LINEAR], alpha=2.0)
    path = write(tmp_path / "x.safetensors", state, {"unet.lora_alpha": 1, "unet.r": 3})
    refused(path, "E_LORA_ALPHA", "from lora_adapter_metadata and from 1 tensors")


@pytest.mark.parametrize(
    ("alpha", "match"),
    [
        (torch.tensor(0.0), "got 0, expected one number above 0"),
        (torch.tensor(-4.0), "got -4, expected"),
        (torch.tensor(math.nan), "got nan, expected"),
        (torch.tensor(math.inf), "got inf, expected"),
        (torch.tensor([1.0, 2.0]), r"got float32\[2\], expected"),
        (torch.tensor(1j), r"got complex64\[\], expected"),
    ],
)
def test_alpha_that_is_no_positive_number(tmp_path: Path, alpha: torch.Tensor, match: str) -> None:
    state = state_of(kohya, [LINEAR])
    state[kohya(*LINEAR)[2]] = alpha
    refused(write(tmp_path / "x.safetensors", state), "E_LORA_ALPHA", match)


# What is refused.

STEM = kohya(*LINEAR)[0].removesuffix(".lora_down.weight")


@pytest.mark.parametrize(
    ("key", "method"),
    [
        (f"{STEM}.lora_mid.weight", "LoCon with a CP decomposition"),
        (f"{STEM}.hada_w1_a", "LoHa"),
        (f"{STEM}.lokr_w1", "LoKr"),
        (f"{STEM}.dora_scale", "DoRA"),
        (f"base_model.model.{LINEAR[1]}.lora_magnitude_vector.default.weight", "DoRA"),
        (f"base_model.model.{LINEAR[1]}.ia3_l", "IA3"),
        (f"{STEM}.on_input", "IA3"),
        (f"{STEM}.oft_blocks", "OFT"),
    ],
)
def test_methods_alike_are_named(tmp_path: Path, key: str, method: str) -> None:
    state = {**state_of(kohya, [LINEAR]), key: torch.ones(3, 3)}
    path = write(tmp_path / "x.safetensors", state)
    refused(path, "E_LORA_KIND", rf"--lora x.safetensors: got {method} \(.*{key[-8:]}\), expected")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lora_unet_mid_block_attentions_1_proj_in.lora_up.weight", LINEAR[1]),
        ("unet.mid_block.attentions.0.proj_inn.lora.up.weight", LINEAR[1]),
        ("base_model.model.down_blocks.0.resnets.9.conv1.lora_A.weight", CONV[1]),
        ("lora_unet_input_blocks_1_0_in_layers_3.lora_up.weight", CONV[0]),
        ("unet.time_embedding.cond_proj.lora.up.weight", "time_embedding"),
        ("lora_unet_mid_block_resnets_0_norm1.lora_up.weight", "mid_block.resnets.0"),
        ("lora_unet_.lora_up.weight", ""),
    ],
)
def test_keys_of_no_layer_are_named_with_the_nearest(
    tmp_path: Path, key: str, nearest: str
) -> None:
    state = {**state_of(kohya, [LINEAR]), key: torch.ones(3, 3)}
    match = rf"got 1 keys of layers that the UNet has not \({key}\), expected .*nearest {nearest}"
    refused(write(tmp_path / "x.safetensors", state), "E_LORA_KEYS", match)


@pytest.mark.parametrize(
    "key",
    [
        f"{STEM}.diff",
        f"{STEM}.lora_up.bias",
        f"unet.{LINEAR[1]}.lora_B.bias",
        "unet.down.weight",
        ".alpha",
        f"{PREFIX}middle_block.1.proj_in.weight",
    ],
)
def test_keys_of_no_lora_are_named(tmp_path: Path, key: str) -> None:
    state = {**state_of(kohya, [LINEAR]), key: torch.ones(3, 3)}
    path = write(tmp_path / "x.safetensors", state)
    refused(path, "E_LORA_KEYS", rf"got 1 keys of no LoRA \({key}\), expected an up and a down")


def test_many_and_hostile_keys_stay_one_short_line(tmp_path: Path) -> None:
    state = {f"\n\x1b[31m{number}" + "a" * 5000: torch.ones(1) for number in range(9)}
    path = write(tmp_path / "x.safetensors", state)
    refused(path, "E_LORA_KEYS", r"got 9 keys of no LoRA \(\\n\\x1b\[31m.*, … 6 more\)")
    with pytest.raises(CheckpointError) as caught:
        read_lora(str(path), PREFIX, meta_unet())
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("left", [("up",), ("down",), ("alpha",), ("up", "alpha")])
def test_half_a_pair(tmp_path: Path, left: tuple[str, ...]) -> None:
    keys = dict(zip(("down", "up", "alpha"), kohya(*LINEAR), strict=True))
    whole = state_of(kohya, [LINEAR, CONV], alpha=1.0)
    state = {key: each for key, each in whole.items() if not key.startswith(f"{STEM}.")} | {
        keys[role]: whole[keys[role]] for role in left
    }
    missing = " and ".join(role for role in ("up", "down") if role not in left)
    match = rf"alone, expected {missing} of {LINEAR[0]} beside it"
    refused(write(tmp_path / "x.safetensors", state), "E_LORA_KEYS", match)


def test_one_layer_under_two_names(tmp_path: Path) -> None:
    state = {**state_of(kohya, [LINEAR]), **state_of(comfy, [LINEAR])}
    path = write(tmp_path / "x.safetensors", state)
    refused(path, "E_LORA_KEYS", r"for one layer, expected one of them")


@pytest.mark.parametrize(
    ("layer", "up", "down", "match"),
    [
        (
            LINEAR,
            (64, 3),
            (3, 65),
            r"up float32\[64,3\] and down float32\[3,65\], expected floating",
        ),
        (LINEAR, (63, 3), (3, 64), r"expected floating up \[64,rank\] and down \[rank,64\]"),
        (LINEAR, (64, 3), (2, 64), "middle_block.1.proj_in: got up"),
        (LINEAR, (3, 64), (64, 3), "got up"),
        (LINEAR, (64, 0), (0, 64), "got up"),
        (LINEAR, (64, 3, 3, 3), (3, 64, 3, 3), "got up"),
        (LINEAR, (64,), (), "got up"),
        (CONV, (32, 3), (3, 32), r"down \[rank,32,3,3\]"),
        (CONV, (32, 3, 1, 1), (3, 32, 1, 1), r"down \[rank,32,3,3\]"),
        (CONV, (32, 3, 3, 3), (3, 32, 1, 1), r"down \[rank,32,3,3\]"),
        (CONV, (32, 3, 1, 1), (3, 288), r"down \[rank,32,3,3\]"),
    ],
)
def test_other_shapes(
    tmp_path: Path,
    layer: tuple[str, str],
    up: tuple[int, ...],
    down: tuple[int, ...],
    match: str,
) -> None:
    down_key, up_key, _ = kohya(*layer)
    state = {down_key: torch.ones(down), up_key: torch.ones(up)}
    refused(write(tmp_path / "x.safetensors", state), "E_LORA_SHAPE", match)


def test_numbers_that_are_no_weights(tmp_path: Path) -> None:
    whole = {name: each.to(torch.int8) for name, each in state_of(kohya, [LINEAR]).items()}
    path = write(tmp_path / "whole.safetensors", whole)
    refused(path, "E_LORA_SHAPE", r"got up int8\[64,3\]")
    for number, bad in enumerate((math.nan, math.inf, -math.inf)):
        state = state_of(kohya, [CONV, LINEAR])
        key = kohya(*LINEAR)[number % 2]
        state[key][1, 2] = bad
        path = write(tmp_path / f"{number}.safetensors", state)
        refused(path, "E_WEIGHTS_NONFINITE", rf"{key}: got NaN or infinity")


def test_a_change_that_is_none_or_too_large(tmp_path: Path) -> None:
    state = state_of(kohya, [LINEAR, CONV])
    zeros = {key: each * ("up" not in key) for key, each in state.items()}
    path = write(tmp_path / "zeros.safetensors", zeros)
    refused(path, "E_WEIGHTS_NONFINITE", "got zeros for up or down in all 2 layers")
    one = {**zeros, kohya(*CONV)[1]: state[kohya(*CONV)[1]]}  # a zero layer is legal
    merged(write(tmp_path / "one.safetensors", one))
    huge = write(tmp_path / "huge.safetensors", {key: each * 1e30 for key, each in state.items()})
    with pytest.raises(CheckpointError, match=r"got a change of \S+ beyond torch") as caught:
        merged(huge)
    assert caught.value.code == "E_WEIGHTS_NONFINITE"


@pytest.mark.parametrize(
    ("number", "shown"), [("nan", "nan"), ("inf", "inf"), ("0", "0"), ("", ""), ("high", "high")]
)
def test_weights_that_are_no_numbers(number: str, shown: str) -> None:
    with pytest.raises(UsageError, match=f"got the weight '{shown}', expected a finite") as caught:
        parse_lora(f"a.safetensors:{number}")
    assert caught.value.code == "E_LORA"


def test_file_and_weight(tmp_path: Path) -> None:
    assert [str(parse_lora("a/b.safetensors")[0]), parse_lora("b")[1]] == ["a/b.safetensors", 1.0]
    path, weight = parse_lora("a.safetensors:-0.25")
    assert (str(path), weight) == ("a.safetensors", -0.25)
    odd = write(tmp_path / "step:4", state_of(kohya, [LINEAR]))
    assert parse_lora(str(odd)) == (odd, 1.0)
    assert parse_lora(f"{odd}:2") == (odd, 2.0)
    assert parse_lora("a" * 5000)[1] == 1.0


def test_what_is_no_lora_file(tmp_path: Path) -> None:
    refused(tmp_path, "E_LORA", "got a folder, expected a file", UsageError)
    refused(tmp_path / "absent", "E_CKPT_NOT_FOUND", "got no such file")
    (tmp_path / "page").write_text("<!DOCTYPE html>")
    refused(tmp_path / "page", "E_CKPT_HTML", "got a web page")
    cut = write(tmp_path / "cut", state_of(kohya, [LINEAR]))
    cut.write_bytes(cut.read_bytes()[:-1])
    refused(cut, "E_CKPT_TRUNCATED", "Fetch the file again")


def test_a_file_that_changes_after_it_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", state_of(kohya, [LINEAR]))
    lora = read_lora(str(path), PREFIX, meta_unet())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError) as caught:
        merge_into(tiny_unet(), [lora])
    assert caught.value.code in ("E_CKPT_CHANGED", "E_CKPT_TRUNCATED")


# Text encoders.

TEXTS = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(3, 8),
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(8, 3),
    "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
    "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight": (
        torch.ones(8, 3)
    ),
    "base_model.model.text_model.encoder.layers.4.mlp.fc1.lora_A.weight": torch.ones(3, 8),
}


def test_changes_of_text_encoders_are_counted_or_refused(tmp_path: Path) -> None:
    state = {**state_of(kohya, [LINEAR], alpha=1.0), **TEXTS}
    path = write(tmp_path / "x.safetensors", state)
    lora = read_lora(str(path), PREFIX, meta_unet())
    assert list(lora.pairs) == [LINEAR[0]]
    assert lora.notes == ("changes of 3 layers of a text encoder left out",)
    match = "got changes of 3 layers of a text encoder, expected none with --text fixed"
    refused(path, "E_LORA_TEXT", match, encodes_text=True)
    alone = write(tmp_path / "alone.safetensors", TEXTS)
    refused(alone, "E_LORA_KEYS", "got changes of 3 layers of a text encoder alone, expected")


# Through the exporter.


def small_config() -> dict[str, Any]:
    """One level of everything: what is looked at is where the change arrives."""
    config = copy.deepcopy(tiny_checkpoint.LDM)
    params = config["params"]
    for part in ("control_stage_config", "unet_config"):
        params[part]["params"].update(channel_mult=[1], attention_resolutions=[1])
    params["first_stage_config"]["params"]["ddconfig"]["ch_mult"] = [1, 1]
    params["preprocess_config"]["params"]["n_downsample"] = 2
    return config


def small_lora(path: Path, **extra: torch.Tensor) -> Path:
    """A LoRA of every layer of the UNet of `small_config`."""
    unet = meta_unet(small_config()["params"]["unet_config"]["params"])
    state = dict(extra)
    for number, (own, theirs) in enumerate(diffusers_names(unet).items()):
        shape = unet.get_parameter(f"{own}.weight").shape
        down_key, up_key, alpha_key = kohya(own, theirs)
        state[up_key] = 0.1 * drawn(shape[0], 2, *(1,) * (len(shape) - 2), seed=2 * number)
        state[down_key] = drawn(2, *shape[1:], seed=2 * number + 1)
        state[alpha_key] = torch.tensor(1.0)
    return write(path, state)


def premerge(folder: Path, lora: Path, weight: float) -> None:
    """Add the LoRA to the UNet's weights in the checkpoint of `folder`, with other code."""
    content = torch.load(folder / "model.ckpt", weights_only=True)
    tensors = read_checkpoint(lora).tensors
    names = diffusers_names(meta_unet(small_config()["params"]["unet_config"]["params"]))
    for own, theirs in names.items():
        down, up, alpha = (tensors[key].double().numpy() for key in kohya(own, theirs))
        rank = down.shape[0]
        product = np.einsum("or,r...->o...", up.reshape(-1, rank), down)
        base = content["state_dict"][f"{PREFIX}{own}.weight"]
        changed = base.double().numpy() + weight * float(alpha) / rank * product
        content["state_dict"][f"{PREFIX}{own}.weight"] = torch.from_numpy(changed).float()
    torch.save(content, folder / "model.ckpt")


def test_other_weights_of_a_change_are_another_source(tmp_path: Path) -> None:
    folder = tiny_checkpoint.write_control_ldm(tmp_path / "checkpoint", small_config())
    lora = small_lora(tmp_path / "lcm.safetensors")

    def digest(weight: str) -> str:
        request = Request(checkpoints=(str(folder),), loras=(f"{lora}{weight}",))
        source, _ = gather(find("diffjscc"), request)
        return source.describe().sha256

    assert digest("") == digest(":1.0") != digest(":0.75")


@pytest.mark.exhaustive  # three whole exports
def test_command_line_exports_what_a_merged_checkpoint_exports(tmp_path: Path) -> None:
    folder = tiny_checkpoint.write_control_ldm(tmp_path / "checkpoint", small_config())
    lora = small_lora(tmp_path / "lcm.safetensors")

    def exported(name: str, *options: str) -> Bundle:
        command = ["--model", "diffjscc", "--checkpoint", str(folder), "--size", "32x48"]
        steps = ["--sampler", "lcm", "--steps", "4", "--licence", "MIT"]
        path = tmp_path / name
        assert main([*command, *steps, *options, "-o", str(path)]) == 0
        return Bundle.open(path)

    plain = exported("plain.jscc")
    student = exported("student.jscc", "--lora", f"{lora}:0.75")
    premerge(folder, lora, 0.75)
    again = exported("again.jscc")

    assert student.manifest.loops["denoise"].sampler.name == "lcm"
    assert student.manifest.loops["denoise"].sampler.steps == 4
    files = [{k: v.sha256 for k, v in each.manifest.files.items()} for each in (student, again)]
    assert files[0] == files[1]  # graphs, constants and the self-test's image, bit for bit
    before = {name: entry.sha256 for name, entry in plain.manifest.files.items()}
    changed = {name for name in before if before[name] != files[0][name]}
    # Without a text tower the context is zero, and so are its keys and values.
    stems = {name.split(".")[0] for name in changed}
    assert stems == {"graphs/denoise", "tensors/selftest_image"}

    source = student.manifest.source
    assert set(source.networks) == {"model", "lora_1"}
    assert source.networks["lora_1"].name == "lcm.safetensors, weight 0.75"
    assert source.networks["lora_1"].sha256 == hashlib.sha256(lora.read_bytes()).hexdigest()
    assert source.networks["model"].sha256 == plain.manifest.source.sha256
    assert source.sha256 != plain.manifest.source.sha256
    assert source.overrides == ()
    assert needed_format(plain.manifest.source) == 1
    assert needed_format(source) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ldm") / "checkpoint"
    return tiny_checkpoint.write_control_ldm(path, small_config())


def stages_of(folder: Path, *loras: str) -> dict[str, torch.nn.Module]:
    """Every stage of a bundle with a prompt for each image, by its name."""
    system = find("diffjscc")
    source, _ = gather(system, Request((str(folder),), loras=loras))
    plan = system.plan(source, Options(text="side"))
    return {spec.name: spec.build() for spec in plan.stages}


def test_stages_are_those_of_a_merged_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    folder = tiny_checkpoint.write_control_ldm(tmp_path / "checkpoint", small_config())
    lora = small_lora(tmp_path / "lcm.safetensors")
    student = stages_of(folder, f"{lora}:0.75")
    premerge(folder, lora, 0.75)
    again = stages_of(folder)
    assert set(student) == set(again) > {"denoise", "prompt"}
    for name, stage in student.items():
        expected = again[name].state_dict()
        assert set(stage.state_dict()) == set(expected)
        assert all(torch.equal(each, expected[key]) for key, each in stage.state_dict().items())


def test_only_the_unet_changes_in_every_stage_that_holds_it(folder: Path, tmp_path: Path) -> None:
    lora = small_lora(tmp_path / "x.safetensors", **TEXTS)
    loras = (str(lora), f"{lora}:0.5")
    source, _ = gather(find("diffjscc"), Request((str(folder),), loras=loras))
    assert source.describe().overrides == tuple(
        f"lora_{number}: changes of 3 layers of a text encoder left out" for number in (1, 2)
    )
    changes = stages_of(folder, *loras)
    for name, before in stages_of(folder).items():
        after = changes[name].state_dict()
        changed = {
            key for key, each in before.state_dict().items() if not torch.equal(each, after[key])
        }
        layers = diffusers_names(before.unet) if name in ("denoise", "prompt") else ()
        assert changed == {f"unet.{layer}.weight" for layer in layers}


def test_a_prompt_encoded_now_wants_the_text_encoder_too(folder: Path, tmp_path: Path) -> None:
    lora = small_lora(tmp_path / "x.safetensors", **TEXTS)
    request = Request((str(folder),), loras=(str(lora),), encodes_text=True)
    with pytest.raises(CheckpointError, match="expected none with --text fixed") as caught:
        gather(find("diffjscc"), request)
    assert caught.value.code == "E_LORA_TEXT"


def test_refused_before_any_work(
    codec_checkpoint: Path, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    lora = str(write(tmp_path / "x.safetensors", state_of(kohya, [LINEAR])))
    output = ("-o", str(tmp_path / "x.jscc"), "--lora", lora)
    codec = ("--model", "deepjscc", "--checkpoint", str(codec_checkpoint))
    assert main([*codec, *output]) == 2
    assert "got a LoRA for a system without a diffusion UNet" in capsys.readouterr().err
    random = ("--config", str(folder / "config.yaml"), "--random-weights", "1")
    assert main(["--model", "diffjscc", *random, *output]) == 2
    assert "--random-weights: got --lora" in capsys.readouterr().err
    assert main(["--model", "diffjscc", "--checkpoint", str(folder), *output]) == 65
    message = capsys.readouterr().err
    assert message.startswith("jscc-export: --lora x.safetensors, middle_block.1.proj_in: got up")
    assert message.endswith("[E_LORA_SHAPE]\n")
    assert not (tmp_path / "x.jscc").exists()
