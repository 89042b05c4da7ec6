"""Attention that visual tokens receive, inside the vision tower and from the text of a prompt."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.annotations import Float, Int
from tango.containers import LayerTokens
from tango.ops.device import chunks


def fold_probe(
    probe: Float[Tensor, "P"],
    in_proj_weight: Float[Tensor, "3*P P"],
    in_proj_bias: Float[Tensor, "3*P"],
    num_heads: int,
) -> Float[Tensor, "heads P"]:
    """Fold the constant query of an attention-pooling head and its key projection into one vector per head.

    The probe is a learned constant, so query and key weights multiply to a fixed (heads, P) matrix. The key bias adds
    the same number to all logits of a head and cancels in the softmax.
    """
    P = probe.numel()
    query = (in_proj_weight[:P].double() @ probe.reshape(P).double() + in_proj_bias[:P].double()).view(num_heads, -1)
    keys = in_proj_weight[P : 2 * P].double().view(num_heads, -1, P)
    return (torch.einsum("hd,hdp->hp", query, keys) / (P // num_heads) ** 0.5).float()


def probe_attention(
    hidden: Float[Tensor, "T N P"],
    folded_probe: Float[Tensor, "heads P"],
    norm_weight: Float[Tensor, "P"],
    norm_bias: Float[Tensor, "P"],
    *,
    eps: float = 1e-6,
) -> Float[Tensor, "T N"]:
    """Attention that each token receives from the pooling head's query, averaged over heads ("p-attn").

    Each frame sums to 1. No attention matrix is formed.

    Source: appendix B.1 of arXiv:2604.09547, after FastVID (arXiv:2503.11187).
    """
    received = []
    for chunk in chunks(len(hidden), hidden[0].numel() * 4, hidden.device):
        normed = F.layer_norm(hidden[chunk].float(), hidden.shape[-1:], norm_weight, norm_bias, eps)
        received.append((normed @ folded_probe.T).softmax(dim=1).mean(-1))
    return torch.cat(received)


def mean_received_attention(
    queries: Float[Tensor, "T heads N d"], keys: Float[Tensor, "T heads N d"], *, scale: float
) -> Float[Tensor, "T N"]:
    """Attention that each token receives from all tokens of its frame, averaged over heads and queries ("attn").

    Computed in chunks of frames: the (heads, N, N) matrices of a few frames exist at a time.

    Source: appendix B.1 of arXiv:2604.09547, after VisionZip (arXiv:2412.04467).
    """
    T, heads, N, _ = queries.shape
    received = []
    for chunk in chunks(T, heads * N * N * 4, queries.device):
        weights = (queries[chunk] @ keys[chunk].mT * scale).softmax(dim=-1, dtype=torch.float32)
        received.append(weights.mean(dim=(1, 2)))
    return torch.cat(received)


def causal_attention(
    queries: Float[Tensor, "Q heads d"], keys: Float[Tensor, "S groups d"], rows: Int[Tensor, "Q"], *, scale: float
) -> Float[Tensor, "heads Q S"]:
    """Attention weights of a few tokens over a whole sequence, in float32; no (S, S) matrix is formed.

    Args:
        queries, keys: rotated; `heads / groups` heads share keys.
        rows: positions of the queries' tokens in the sequence; tokens after a query's have weight 0.
    """
    S, groups, _ = keys.shape
    scores = torch.einsum("qgrd,sgd->grqs", queries.float().unflatten(1, (groups, -1)), keys.float()) * scale
    later = torch.arange(S, device=keys.device) > rows[:, None]
    return scores.flatten(0, 1).masked_fill(later, float("-inf")).softmax(-1)


def attention_of_last_token(tokens: LayerTokens) -> Float[Tensor, "M"]:
    """Attention that the prompt's last token gives to each visual token, averaged over heads, in float32."""
    weights = causal_attention(tokens.queries[-1:], tokens.keys, tokens.text[-1:], scale=tokens.scale)
    return weights.mean((0, 1))[tokens.visual]


def text_attention(tokens: LayerTokens) -> Iterator[tuple[slice, Tensor]]:
    """Attention that the text after the video gives to each visual token, in float32, a few text tokens at a time.

    Yields:
        A slice of `tokens.text`, and the weights of those text tokens, (heads, in slice, M).
    """
    heads, S = tokens.queries.shape[1], len(tokens.hidden)
    for chunk in chunks(len(tokens.text), heads * S * 4, tokens.hidden.device):
        weights = causal_attention(tokens.queries[chunk], tokens.keys, tokens.text[chunk], scale=tokens.scale)
        yield chunk, weights[..., tokens.visual]
