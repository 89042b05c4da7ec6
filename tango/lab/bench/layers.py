"""Synthetic prompts at a decoder layer, and intra-LLM methods run on them as the decoder would run them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tango.containers import LayerTokens, VisualTokens
from tango.errors import BudgetError
from tango.methods import LayerPruner, build_layer_pruner

NUM_LAYERS, _HEADS, _GROUPS, _HEAD_DIM = 28, 28, 4, 128  # of a Qwen2 7B
_TEXT_BEFORE, _TEXT_AFTER = 20, 100


def synthetic_prompt(tokens: VisualTokens, *, seed: int = 0) -> LayerTokens:
    """A prompt around visual tokens, which serve as hidden states; queries, keys and text are drawn from a normal."""
    T, N, D = tokens.features.shape
    device, dtype, generator = tokens.features.device, tokens.features.dtype, torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    x = tokens.features.flatten(0, 1)
    S, index = _TEXT_BEFORE + T * N + _TEXT_AFTER, torch.arange(T * N, device=device)
    return LayerTokens(
        layer=0,
        hidden=torch.cat([normal(_TEXT_BEFORE, D).to(dtype), x, normal(_TEXT_AFTER, D).to(dtype)]),
        visual=index + _TEXT_BEFORE,
        text=torch.arange(S - _TEXT_AFTER, S, device=device),
        queries=normal(_TEXT_AFTER, _HEADS, _HEAD_DIM),
        keys=normal(S, _GROUPS, _HEAD_DIM),
        scale=_HEAD_DIM**-0.5,
        norm_weight=torch.ones(D, device=device, dtype=dtype),
        frames=index // N,
        cells=index % N,
        counts=(T * N,),
    )


def build(name: str, retention_ratio: float) -> LayerPruner:
    """Build a method for this mean over the layers; one meant as a second step keeps its own layer and ratio."""
    pruner = build_layer_pruner(name)
    try:
        return pruner.for_mean(retention_ratio, NUM_LAYERS)
    except BudgetError:
        return pruner


def run_through(pruner: LayerPruner, prompt: LayerTokens) -> LayerTokens:
    """The prompt that is left after all layers at which the method works. Queries and keys do not change."""
    for layer in pruner.layers:
        counts = prompt.counts + prompt.counts[-1:] * (layer - len(prompt.counts))
        prompt = replace(prompt, layer=layer, counts=counts)
        states, kept = pruner(prompt)
        if len(kept) < len(prompt.visual):
            prompt = _shortened(prompt, states, kept)
        prompt = replace(prompt, counts=(*counts, len(kept)))
    return prompt


def _shortened(prompt: LayerTokens, states: Tensor, kept: Tensor) -> LayerTokens:
    """The prompt with only these of its visual tokens, which follow each other without text between them."""
    first, M = _TEXT_BEFORE, len(prompt.visual)
    after = slice(first + M, None)
    visual = prompt.visual[kept]
    return replace(
        prompt,
        hidden=torch.cat([prompt.hidden[:first], states, prompt.hidden[after]]),
        keys=torch.cat([prompt.keys[:first], prompt.keys[visual], prompt.keys[after]]),
        visual=torch.arange(first, first + len(kept), device=kept.device),
        text=prompt.text - M + len(kept),
        frames=prompt.frames[kept],
        cells=prompt.cells[kept],
    )


def merges(before: LayerTokens, after: LayerTokens) -> bool:
    """Whether the state of any visual token that is left has changed."""
    source = after.frames * (int(before.cells.max()) + 1) + after.cells  # (M',) index t * N + n among the M = T * N
    return not torch.equal(before.hidden[before.visual[source]], after.hidden[after.visual])
