"""Many questions about one clip in one pass of the language model: they share the video but do not see each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2Model, apply_rotary_pos_emb

from tango.annotations import Float

_BLOCK = 16  # tokens


def packed_forward(
    decoder: Qwen2Model,
    prefix: Float[Tensor, "B N D"],
    positions: Float[Tensor, "B N"],
    questions: Float[Tensor, "B Q L D"],
) -> Float[Tensor, "B Q L D"]:
    """Final hidden states of Q questions of L tokens, each as if it alone followed the prefix.

    Args:
        positions: those of the prefix in the rotary embedding, which may be fractions. Every question's positions
            follow the last of them.
    """
    B, Q, L, D = questions.shape
    N, layers = prefix.shape[1], decoder.layers
    after = positions[:, -1:] + 1 + torch.arange(L, device=prefix.device).repeat(Q)
    cos, sin = decoder.rotary_emb(prefix, torch.cat([positions, after], dim=1))
    x = torch.cat([prefix, questions.flatten(1, 2)], dim=1)
    for layer in layers:
        attended = _attend(layer.self_attn, layer.input_layernorm(x), cos, sin, N, (Q, L), layer is layers[-1])
        if layer is layers[-1]:
            x = x[:, N:]  # the last layer's output for the video is not used
        x = x + attended
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return decoder.norm(x).view(B, Q, L, D)


def _attend(
    attention: Qwen2Attention, x: Tensor, cos: Tensor, sin: Tensor, N: int, shape: tuple[int, int], questions_only: bool
) -> Tensor:
    """Self-attention, causal within the prefix; a question's token sees the prefix and its question up to itself."""
    Q, L = shape
    B, width = len(x), attention.head_dim
    q, k, v = (
        project(x).view(B, -1, project.out_features // width, width).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    heads = q.shape[1]
    k, v = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
    ours = q[:, :, N:] * attention.scaling
    over_prefix = (ours @ k[:, :, :N].transpose(2, 3)).view(B, heads, Q, L, N)
    own_k, own_v = (t[:, :, N:].unflatten(2, (Q, L)) for t in (k, v))
    future = torch.ones(L, L, dtype=torch.bool, device=x.device).triu(1)
    over_own = (ours.unflatten(2, (Q, L)) @ own_k.transpose(3, 4)).masked_fill(future, float("-inf"))
    weights = torch.cat([over_prefix, over_own], dim=-1).softmax(-1)
    mixed = (weights[..., :N].flatten(2, 3) @ v[:, :, :N]) + (weights[..., N:] @ own_v).flatten(2, 3)
    if not questions_only:
        # Padded to whole blocks: at other lengths, PyTorch's result on a CPU depends on the input's address in memory.
        q, k, v = (F.pad(t[:, :, :N], (0, 0, 0, -N % _BLOCK)) for t in (q, k, v))
        causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :, :N]
        mixed = torch.cat([causal, mixed], dim=2)
    return attention.o_proj(mixed.transpose(1, 2).flatten(2))
