"""What pruning saves in the LLM: kept fraction averaged over layers, prefill FLOPs, KV-cache bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tango.errors import BudgetError


def mean_retention_ratio(
    retention_ratio: float, *, num_layers: int, layer: int | None = None, layer_retention_ratio: float = 1.0
) -> float:
    """Fraction of visual tokens that enter a layer, averaged over the LLM's layers.

    Args:
        retention_ratio: fraction that enters the LLM.
        layer: tokens are pruned again at the input of this layer; None: nowhere.
        layer_retention_ratio: fraction of the tokens that reach `layer` and are kept there.
    Raises:
        BudgetError: the LLM has no such layer.
    Source: eq. 1 of arXiv:2604.09547.
    """
    if layer is None:
        return retention_ratio
    check_layer(layer, num_layers)
    return retention_ratio * (layer + (num_layers - layer) * layer_retention_ratio) / num_layers


def solve_retention_ratio(
    mean: float, *, num_layers: int, layer: int | None = None, layer_retention_ratio: float = 1.0
) -> float:
    """The pre-LLM retention ratio that gives this mean over the LLM's layers.

    Raises:
        BudgetError: `mean` is outside (0, 1], or so high that even keeping all tokens pre-LLM does not reach it.
    """
    if not 0 < mean <= 1:
        raise BudgetError(f"mean_retention_ratio must lie in (0, 1], got {mean!r}")
    most = mean_retention_ratio(1.0, num_layers=num_layers, layer=layer, layer_retention_ratio=layer_retention_ratio)
    if mean > most:
        raise BudgetError(
            f"mean_retention_ratio {mean:.4g} is out of reach: keeping {layer_retention_ratio:.4g} from layer {layer} "
            f"of {num_layers} on leaves {most:.4g} at most; prune later, or keep more at that layer"
        )
    return mean / most


def solve_layer_ratio(mean: float, *, num_layers: int, layer: int) -> float:
    """The fraction to keep at the input of `layer` that gives this mean over the LLM's layers if all tokens enter it.

    Raises:
        BudgetError: `mean` is outside (0, 1], or the layers before `layer`, which see all tokens, alone reach it.
    Source: eq. 1 of arXiv:2604.09547.
    """
    if not 0 < mean <= 1:
        raise BudgetError(f"retention_ratio must lie in (0, 1], got {mean!r}. 0.1 keeps one token in ten")
    check_layer(layer, num_layers)
    ratio = (num_layers * mean - layer) / (num_layers - layer)
    if ratio <= 0:
        latest = math.ceil(num_layers * mean) - 1
        way_out = f"prune at layer {latest} or before" if latest else "ask for more, or prune pre-LLM"
        raise BudgetError(
            f"{mean:.4g} of the visual tokens, averaged over {num_layers} layers, is out of reach: "
            f"the first {layer} layers see all tokens, which alone makes {layer / num_layers:.4g}; {way_out}"
        )
    return ratio


def check_layer(layer: int, num_layers: int) -> None:
    """Raise BudgetError unless the LLM has a layer `layer` with one before it."""
    if not 1 <= layer < num_layers:
        raise BudgetError(
            f"layer must lie in 1..{num_layers - 1} for an LLM of {num_layers} layers, got {layer}; name another one "
            "(`layer` of the method, `pruned_layer` beside a layer pruner)"
        )


def layer_flops(
    num_tokens: int,
    *,
    width: int,
    mlp_width: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int | None = None,
    gates: int = 0,
) -> int:
    """FLOPs of one decoder layer for a prompt, in the paper's letters: N (4 d^2 (1 + G / H) + 6 d m) + 4 N^2 d.

    N is `num_tokens`, d `width`, m `mlp_width`, H `num_heads` and G `num_kv_heads`. A multiplication with its addition
    counts as two. The four projections of attention and the three of the gated MLP are linear in N; queries by keys and
    weights by values are quadratic, with the masked half counted. Norms, biases, rotations, softmax, embedding and
    output head are left out.

    Args:
        mlp_width: where a token passes several experts, the sum of their widths.
        head_dim: None: width / num_heads. Where heads are wider or narrower, 4 d^2 and 4 N^2 d become
            4 d (H head_dim) and 4 N^2 (H head_dim).
        gates: g, outputs of further maps of the layer's input, such as a router's, which add 2 N d g.
    Source: section 3 of arXiv:2604.09547; `gates` is Tango's.
    """
    attention_width = num_heads * (head_dim or width // num_heads)
    kv_width = attention_width * num_kv_heads // num_heads
    projections = 4 * width * (attention_width + kv_width) + 6 * width * mlp_width + 2 * width * gates
    return num_tokens * projections + 4 * num_tokens**2 * attention_width


def delta_net_flops(
    num_tokens: int,
    *,
    width: int,
    mlp_width: int,
    num_key_heads: int,
    num_value_heads: int,
    key_dim: int,
    value_dim: int,
    kernel: int,
    gates: int = 0,
) -> int:
    """FLOPs of one decoder layer with a gated delta net (linear attention) in place of attention, linear in N.

    With K and V for heads by dimension of keys and values, h for value heads: projections to queries, keys, values,
    their gate, two numbers per value head and back, 2 N d (2 K + 3 V + 2 h); a convolution over `kernel` tokens,
    2 N kernel (2 K + V); three products of each value head's state with a vector, 6 N V key_dim. The prefill computes
    the latter in chunks of tokens, with about twice the products; they are a few percent of the layer either way. The
    MLP and `gates` are as in `layer_flops`.
    """
    keys, values = num_key_heads * key_dim, num_value_heads * value_dim
    projections = width * (2 * keys + 3 * values + 2 * num_value_heads + 3 * mlp_width + gates)
    mixing = kernel * (2 * keys + values) + 3 * values * key_dim
    return 2 * num_tokens * (projections + mixing)


def kv_cache_bytes(
    tokens_per_layer: Sequence[int], *, num_kv_heads: int, head_dim: int, bytes_per_number: int = 2
) -> int:
    """Bytes of keys and values that layers with these token counts hold for one prompt."""
    return 2 * sum(tokens_per_layer) * num_kv_heads * head_dim * bytes_per_number
