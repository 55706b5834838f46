"""Attention: softmax(Q K^T / sqrt(d)) V with scores in float32 whatever the precision of the rest.

Ashish Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1.

Every network in this folder attends through this function, because the scores are where half
precision fails first: those of Stable Diffusion 2.1 leave the range of float16.
"""

import torch
from torch import Tensor
from torch.nn import functional


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mix `value` by how well each `query` fits each `key`.

    Float32 inputs of rank 4 take PyTorch's fused attention, which keeps no scores and is the only
    rank that its ONNX exporter knows. Half inputs have scores and softmax in float32 and mix the
    values in half precision.

    Args:
        query: [B, .., heads, N, d].
        key: [B or 1, .., heads, M, d].
        value: [B or 1, .., heads, M, d].
        bias: Added to the scores after scaling, broadcast to [B, .., heads, N, M].

    Returns:
        [B, .., heads, N, d] in the dtype of `value`.
    """
    if value.dtype != torch.float16 and value.dim() == 4:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = torch.matmul(query.float(), key.float().transpose(-1, -2)) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.float()
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Turn tokens [B, N, heads * d] into [B, heads, N, d]."""
    return torch.unflatten(tokens, -1, (heads, -1)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """Turn [B, heads, N, d] back into tokens [B, N, heads * d]."""
    return tokens.transpose(1, 2).flatten(2)
