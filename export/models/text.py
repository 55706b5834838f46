"""TextTower: the OpenCLIP transformer whose output conditions Stable Diffusion 2.

Mehdi Cherti et al., "Reproducible scaling laws for contrastive language-image learning", arXiv
2212.07143 (the weights); Alec Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision", arXiv 2103.00020, section 2.4 (the network).
Written from a description of the checkpoints; only the names of the parameters are theirs.

    tokens [B,77] ─▶ embedding + position ─▶ causal blocks but the last ─▶ norm ─▶ [B,77,width]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.attention import attend, join_heads, split_heads

# How many blocks at the end are left out, by the `layer` of the configuration.
SKIPPED_BLOCKS: Final = {"last": 0, "penultimate": 1}


@dataclass(frozen=True)
class TextConfig:
    """Shape of a text tower; the defaults are those of ViT-H-14.

    Attributes:
        width: Width of a token.
        heads: Attention heads.
        layers: Blocks, counting those that are left out.
        context_length: Tokens per text.
        vocab_size: Known tokens.
    """

    width: int = 1024
    heads: int = 16
    layers: int = 24
    context_length: int = 77
    vocab_size: int = 49408

    @classmethod
    def from_open_clip(cls, text_cfg: Mapping[str, Any]) -> Self:
        """Read the `text_cfg` of an OpenCLIP model configuration.

        Raises:
            ValueError: A key is unknown, or a value is not a positive integer.
        """
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(text_cfg) - known):
            raise ValueError(
                f"text_cfg: got unknown keys {unknown}, expected some of {sorted(known)}. "
                "This kind of text tower is not implemented."
            )
        for key, value in text_cfg.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"text_cfg.{key}: got {value!r}, expected a positive integer. Correct the file."
                )
        # OpenCLIP's own defaults, which differ from ViT-H-14.
        config = cls(**{"width": 512, "heads": 8, "layers": 12, **text_cfg})
        if config.width % config.heads:
            raise ValueError(
                f"text_cfg.width: got {config.width}, expected a multiple of heads "
                f"({config.heads}). Correct the file."
            )
        return config


class SelfAttention(nn.Module):
    """Causal multi-head attention with query, key and value in one projection."""

    float16_parameters: Final = ("in_proj_weight", "in_proj_bias")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.to(self.in_proj_weight.dtype)
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (split_heads(part, self.heads) for part in qkv.chunk(3, dim=-1))
        out: Tensor = self.out_proj(join_heads(attend(query, key, value, mask)))
        return out


class Mlp(nn.Module):
    """Two linear layers around an (exact) GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(functional.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each normalised first and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The blocks that run; those of a checkpoint that do not are neither kept nor expected."""

    def __init__(self, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class TextTower(nn.Module):
    """Turns token numbers into a context. Keys `cond_stage_model.model.*` of a checkpoint.

    What has no influence on the context is not built, though checkpoints hold it: the blocks that
    are left out, `text_projection`, `logit_scale`, `attn_mask` and all of `visual`.
    """

    float16_parameters: Final = ("positional_embedding",)

    def __init__(self, config: TextConfig, skipped: int = 1) -> None:
        super().__init__()
        blocks = config.layers - skipped
        if blocks < 1:
            raise ValueError(
                f"text tower: got {config.layers} layers, expected more than {skipped}. "
                "Check text_cfg and layer."
            )
        self.config = config
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        nn.init.normal_(self.positional_embedding, std=0.01)
        self.transformer = Transformer(config.width, config.heads, blocks)
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.ln_final = nn.LayerNorm(config.width)
        size = (config.context_length, config.context_length)
        # A plain attribute: no key in the state dict, and never cast or built on "meta".
        self.mask = torch.full(size, -torch.inf, device="cpu").triu(1)

    @classmethod
    def from_config(
        cls, params: Mapping[str, Any], text_cfg: Mapping[str, Any] | None = None
    ) -> Self:
        """Build the tower of `cond_stage_config.params`, an official configuration.

        Args:
            params: The values in the YAML: `arch`, `layer`, and others that change nothing.
            text_cfg: The `text_cfg` of the OpenCLIP model configuration that `arch` names; None
                means that `arch` is absent or ViT-H-14.

        Raises:
            ValueError: `arch` or `layer` is unknown, or `text_cfg` is unusable.
        """
        layer = params.get("layer", "last")
        if layer not in SKIPPED_BLOCKS:
            raise ValueError(
                f"cond_stage_config.layer: got {layer!r}, expected one of "
                f"{sorted(SKIPPED_BLOCKS)}. Correct the file."
            )
        arch = params.get("arch", "ViT-H-14")
        if text_cfg is None and arch != "ViT-H-14":
            raise ValueError(
                f"cond_stage_config.arch: got {arch!r} without its text_cfg, expected 'ViT-H-14'. "
                "Put the OpenCLIP configuration of that name next to config.yaml."
            )
        config = TextConfig() if text_cfg is None else TextConfig.from_open_clip(text_cfg)
        return cls(config, SKIPPED_BLOCKS[layer])

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the context [B, context_length, width], float32, of `tokens` [B, context_length].

        Padding tokens take part, as they did in training.
        """
        x: Tensor = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.mask.to(x.device)))
        return x.float()
