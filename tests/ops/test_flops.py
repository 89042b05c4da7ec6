"""Counting what pruning saves: against numbers by hand, and against PyTorch's own counter on a real decoder."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Glm4vMoeTextConfig,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    Qwen3NextConfig,
    Qwen3VLMoeTextConfig,
)

from tango.errors import BudgetError, UnsupportedModelError
from tango.models.calls import cache_argument, cache_of
from tango.ops.flops import (
    delta_net_flops,
    kv_cache_bytes,
    layer_flops,
    mean_retention_ratio,
    solve_retention_ratio,
)
from tango.ops.llm_shapes import PUBLISHED_SHAPES, Experts, llm_of
from tests import tiny_qwen


@pytest.mark.parametrize(("mean", "before"), [(0.1, 0.121739), (0.15, 0.182609), (0.2, 0.243478)])
def test_ratios_of_the_paper(mean, before):
    inside = {"num_layers": 28, "layer": 18, "layer_retention_ratio": 0.5}
    assert solve_retention_ratio(mean, **inside) == pytest.approx(before, abs=1e-6)
    assert mean_retention_ratio(before, **inside) == pytest.approx(mean, abs=1e-6)


def test_without_a_layer_the_mean_is_the_ratio():
    assert solve_retention_ratio(0.3, num_layers=28) == mean_retention_ratio(0.3, num_layers=28) == 0.3


@pytest.mark.parametrize("layer", [1, 2, 3, 9])
def test_mean_is_the_average_over_layers(layer):
    entering = [0.4] * layer + [0.4 * 0.3] * (10 - layer)
    mean = mean_retention_ratio(0.4, num_layers=10, layer=layer, layer_retention_ratio=0.3)
    assert mean == pytest.approx(sum(entering) / 10)


@pytest.mark.parametrize(
    ("mean", "layer", "message"),
    [
        (0.9, 18, "out of reach"),
        (0.0, 18, "must lie in"),
        (1.1, None, "must lie in"),
        (0.1, 28, "1..27"),
        (0.1, 0, "got 0"),
    ],
)
def test_infeasible(mean, layer, message):
    with pytest.raises(BudgetError, match=message):
        solve_retention_ratio(mean, num_layers=28, layer=layer, layer_retention_ratio=0.5)


def test_the_papers_formula_at_its_size():
    d, m, G, H, N = 3584, 18944, 4, 28, 6393
    expected = N * (4 * d * d * (1 + G / H) + 6 * d * m) + 4 * N * N * d
    assert layer_flops(N, width=d, mlp_width=m, num_heads=H, num_kv_heads=G) == round(expected)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_formula_counts_what_pytorch_counts(family):
    """Every matrix product of a layer, nothing else. Eager attention: PyTorch counts none of SDPA's work on a CPU."""
    N, sizes = 48, {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96, "intermediate_size": 160}
    config_class, model_class = (Qwen2Config, Qwen2Model) if family == "qwen2" else (Qwen3Config, Qwen3Model)
    head_dim = 16 if family == "qwen2" else 32  # of Qwen3, heads * head_dim may exceed the width
    config = config_class(**sizes, head_dim=head_dim, num_hidden_layers=3, vocab_size=10, attn_implementation="eager")
    model = model_class(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=torch.randn(1, N, 96), use_cache=False)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    expected = layer_flops(N, width=96, mlp_width=160, num_heads=6, num_kv_heads=2, head_dim=head_dim)
    assert [counts[f"{model_class.__name__}.layers.{i}"] for i in range(3)] == [expected] * 3
    rotary = 2 * N * (head_dim // 2)  # positions by frequencies, once per model; a product in some releases only
    assert counter.get_total_flops() - 3 * expected in (0, rotary)


def test_cache_bytes():
    assert kv_cache_bytes([10, 10, 5], num_kv_heads=4, head_dim=128) == 2 * 25 * 4 * 128 * 2


@pytest.mark.parametrize("family", tiny_qwen.MORE)
def test_a_step_of_experts_and_delta_nets_counts_what_pytorch_counts(family):
    """All of it but convolutions and the products of a state, which are no matrix products in a step's code."""
    model = tiny_qwen.model(family)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    decoder, llm = model.get_decoder(), llm_of(model.config)
    with torch.no_grad():
        cache = cache_of(decoder(inputs_embeds=torch.randn(1, 20, 64), use_cache=True))
        with FlopCounterMode(display=False) as counter:
            decoder(inputs_embeds=torch.randn(1, 1, 64), **{cache_argument(decoder): cache})
    ops = counter.get_flop_counts()["Global"]
    products = sum(count for op, count in ops.items() if "convolution" not in str(op))
    rotary = 3 * 2 * 8  # three rows of positions by 8 frequencies; a product in some releases only
    state, conv = 6 * (4 * 24) * 16, 2 * 4 * (2 * 2 * 16 + 4 * 24)
    expected = llm.step_flops([21] * llm.num_layers) - len(llm.delta_layers) * (state + conv)
    assert products - expected in (0, rotary)


def test_a_delta_net_by_hand():
    """Qwen3.5-9B: 16 heads of keys and 32 of values, all of 128 channels."""
    d, m, K, V = 4096, 12288, 16 * 128, 32 * 128
    sizes = {"num_key_heads": 16, "num_value_heads": 32, "key_dim": 128, "value_dim": 128, "kernel": 4}
    projections = 2 * d * (2 * K + V) + 2 * d * V + 2 * 2 * d * 32 + 2 * V * d
    per_token = projections + 2 * 4 * (2 * K + V) + 32 * 3 * 2 * 128 * 128 + 6 * d * m
    assert delta_net_flops(5, width=d, mlp_width=m, **sizes) == 5 * per_token
    llm = PUBLISHED_SHAPES["qwen3.5-9b"]
    assert llm.attention_layers == (3, 7, 11, 15, 19, 23, 27, 31)
    own = 2 * d * (16 * 256) * 3 + 2 * d * (4 * 256) * 2 + 6 * d * m  # queries, their gate and the output; keys, values
    assert llm.layer_flops(3, 5) == 5 * own + 4 * 25 * 16 * 256
    assert llm.prefill_flops([5] * 32) == 24 * 5 * per_token + 8 * llm.layer_flops(3, 5)
    assert llm.kv_cache_bytes([5] * 32) == 8 * 2 * 5 * 4 * 256 * 2


def test_layers_without_experts_are_found():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 6}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 3}
    qwen = Qwen3VLMoeTextConfig(**sizes, **experts, intermediate_size=9, decoder_sparse_step=2, mlp_only_layers=[3])
    assert llm_of(qwen).dense_layers == (0, 2, 3, 4)
    assert [llm_of(qwen).layer_flops(i, 1) for i in (1, 3)] == [
        layer_flops(1, width=8, mlp_width=m, num_heads=2, num_kv_heads=1, gates=g) for m, g in ((6, 4), (9, 0))
    ]
    assert llm_of(qwen).idle_weights == 2 * 2 * 3 * 8 * 3
    glm = llm_of(Glm4vMoeTextConfig(**sizes, moe_intermediate_size=5, first_k_dense_replace=2, n_shared_experts=2))
    assert (glm.dense_layers, glm.experts) == ((0, 1), Experts(count=128, active=8, width=5, shared_width=10))
    assert glm.note == "8 of 128 experts of 4 layers a token, and the 10 channels that all tokens share"


def test_layers_of_an_unknown_kind_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"layers of qwen3_next are not known.*got linear_attention"):
        llm_of(Qwen3NextConfig(num_hidden_layers=4))
    other = Qwen3Config(num_hidden_layers=2)
    other.layer_types = ["conv", "full_attention"]
    with pytest.raises(UnsupportedModelError, match=r"layers of qwen3 are not known.*got conv"):
        llm_of(other)
    other.layer_types, other.num_experts = None, 8
    with pytest.raises(UnsupportedModelError, match="has experts, but no num_experts_per_tok"):
        llm_of(other)
