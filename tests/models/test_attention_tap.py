"""The tap shows what attention works with, whatever the rotation, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tango.models.attention_tap import AttentionTap

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
# Rotations: halves against halves; after norms; interleaved, of half of the channels.
FAMILIES = {"llama": "LlamaConfig", "qwen3": "Qwen3Config", "glm4": "Glm4Config"}


def build(family: str, attention: str = "sdpa") -> Any:
    config = getattr(transformers, FAMILIES[family])(**SIZES)
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config, attn_implementation=attention).eval()


IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shows_what_the_weights_are_made_of(family: str, attention: str) -> None:
    model, seen = build(family, attention), []
    module = model.layers[1].self_attn
    before, states = set(ALL_ATTENTION_FUNCTIONS), model(IDS).last_hidden_state
    config, attributes = module.config, set(vars(module))
    tap = AttentionTap(module, lambda *shown: seen.append(shown))
    tapped = model(IDS).last_hidden_state
    tap.remove()
    tap.remove()
    assert torch.equal(tapped, states)
    assert (module.config is config, set(vars(module)), set(ALL_ATTENTION_FUNCTIONS)) == (True, attributes, before)
    [(queries, keys, scale)] = seen
    assert (queries.shape, keys.shape) == ((1, 4, 8, 8), (1, 2, 8, 8))
    logits = queries @ keys.repeat_interleave(2, dim=1).mT * scale
    weights = logits.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf).softmax(-1)
    expected = build(family, "eager")(IDS, output_attentions=True).attentions[1]
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_taps_of_one_module_come_and_go_in_any_order() -> None:
    model, seen = build("llama"), []
    module = model.layers[0].self_attn
    config = module.config
    first, second = (AttentionTap(module, lambda *_, name=name: seen.append(name)) for name in ("first", "second"))
    model(IDS)
    first.remove()
    model(IDS)
    second.remove()
    model(IDS)
    assert seen == ["first", "second", "second"]
    assert module.config is config


@torch.no_grad()
def test_the_function_finds_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention asks the module's config which of its releases to call."""
    names: list[str] = []

    def stand_in(module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **kwargs: Any) -> Any:
        names.append(module.config._attn_implementation)
        assert (module.is_causal, module.layer_idx) == (True, 0)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", stand_in)
    model, seen = build("llama"), []
    module = model.layers[0].self_attn
    module.config._attn_implementation_internal = "flash_attention_2"
    tap = AttentionTap(module, lambda *shown: seen.append(shown))
    module(torch.ones(1, 3, 32), (torch.ones(1, 3, 8), torch.zeros(1, 3, 8)), attention_mask=None)
    tap.remove()
    assert (names, len(seen)) == (["flash_attention_2"], 1)
