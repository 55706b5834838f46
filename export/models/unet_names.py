"""Unet names: what diffusers calls the layers of `jscc.export.models.unet`.

Checkpoints number the UNet's blocks in the order of execution (``input_blocks.4.1``); diffusers
says level, kind and index (``down_blocks.1.attentions.0``), the levels of the way up counted from
the lowest resolution. What is trained with diffusers is published under its names.
"""

from collections.abc import Iterator
from types import MappingProxyType

from torch import nn

from jscc.export.models.unet import Unet
from jscc.export.models.unet_config import UnetConfig

# Layers whose own names differ within a block; those within a transformer are the same in both.
WITHIN = MappingProxyType(
    {
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
        "op": "conv",
    }
)


def diffusers_names(unet: Unet) -> dict[str, str]:
    """The diffusers name of every layer of `unet` that has a matrix, by its own name."""
    names = {}
    for block, theirs in _blocks(unet.config):
        for layer, module in unet.get_submodule(block).named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                own = f"{block}.{layer}" if layer else block
                names[own] = f"{theirs}.{WITHIN.get(layer, layer)}" if layer else theirs
    return names


def _blocks(config: UnetConfig) -> Iterator[tuple[str, str]]:
    """Own and diffusers name of every block, as `Unet` is built; ends with what is in no block."""
    place = 0
    for level, (_, count) in enumerate(config.levels):
        for index in range(count):
            place += 1
            yield f"input_blocks.{place}.0", f"down_blocks.{level}.resnets.{index}"
            if config.attends(level):
                yield f"input_blocks.{place}.1", f"down_blocks.{level}.attentions.{index}"
        if level + 1 < len(config.levels):
            place += 1
            yield f"input_blocks.{place}.0", f"down_blocks.{level}.downsamplers.0"
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    place = 0
    for step, (level, (_, count)) in enumerate(reversed(list(enumerate(config.levels)))):
        for index in range(count + 1):
            yield f"output_blocks.{place}.0", f"up_blocks.{step}.resnets.{index}"
            if config.attends(level):
                yield f"output_blocks.{place}.1", f"up_blocks.{step}.attentions.{index}"
            if level > 0 and index == count:
                last = 2 if config.attends(level) else 1
                yield f"output_blocks.{place}.{last}", f"up_blocks.{step}.upsamplers.0"
            place += 1
    yield "input_blocks.0.0", "conv_in"
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "out.2", "conv_out"
