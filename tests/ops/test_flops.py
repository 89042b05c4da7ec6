"""Counting what pruning saves: against numbers by hand, and against PyTorch's own counter on a real decoder."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from tango.errors import BudgetError
from tango.ops.flops import kv_cache_bytes, layer_flops, mean_retention_ratio, solve_retention_ratio


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
