"""Runs a SigLIP, CLIP, InternViT or DINOv2 vision tower up to the block whose output is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from tango.annotations import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TowerStates(NamedTuple):
    """Input and output of the last used block."""

    entering: Float[Tensor, "T p P"]
    hidden: Float[Tensor, "T p P"]


def run_tower(tower: PreTrainedModel, depth: int, pixels: Float[Tensor, "T 3 h w"]) -> TowerStates:
    """Run the first `depth` blocks of a tower; the output of later blocks is not used.

    States of earlier blocks are not collected. The tower keeps its attention implementation.
    """
    hidden = run_blocks(tower, embed(tower, pixels), 0, depth - 1)
    return TowerStates(hidden, run_blocks(tower, hidden, depth - 1, depth))


def embed(tower: PreTrainedModel, pixels: Float[Tensor, "T 3 h w"]) -> Float[Tensor, "T p P"]:
    """The input of a tower's first block."""
    # The patch convolution puts channels first in memory; every residual sum and norm would then be strided.
    if tower.config.model_type == "smolvlm_vision":
        # It looks positions up by fractions, for images of any shape; a frame that fills the grid has them all. In 16
        # bits transformers 5.17 rounds the fractions, and 288 of 27 x 27 patches would get the position of another.
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return (patches + tower.embeddings.position_embedding.weight).contiguous()
    hidden = tower.embeddings(pixels).contiguous()
    return tower.pre_layrnorm(hidden) if hasattr(tower, "pre_layrnorm") else hidden  # CLIP's, spelled like this


def run_blocks(tower: PreTrainedModel, hidden: Float[Tensor, "T p P"], first: int, end: int) -> Float[Tensor, "T p P"]:
    """Run blocks `first` to `end` - 1."""
    no_mask = () if hasattr(tower.encoder, "layer") else (None,)
    for block in blocks_of(tower)[first:end]:
        hidden = block(hidden, *no_mask)
    return hidden


def blocks_of(tower: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a tower, in order; the lists of InternViT and DINOv2 are named in the singular."""
    return tower.encoder.layer if hasattr(tower.encoder, "layer") else tower.encoder.layers


def scale_of(block: Any) -> float:
    """What a block multiplies its queries times keys by."""
    attention = _attention_of(block)
    return attention.scaling if hasattr(attention, "scaling") else attention.scale


def project(block: Any, entering: Float[Tensor, "T p P"], name: str) -> Float[Tensor, "T heads p d"]:
    """Queries ("q") or keys ("k") of one block, from its input."""
    attention = _attention_of(block)
    norm = next(getattr(block, n) for n in ("layer_norm1", "layernorm_before", "norm1") if hasattr(block, n))
    layer = f"{name}_proj" if hasattr(attention, "q_proj") else {"q": "query", "k": "key"}[name]
    projected = getattr(attention, layer)(norm(entering))
    if hasattr(attention, f"{name}_norm"):  # InternViT normalises across all heads, before they are split
        projected = getattr(attention, f"{name}_norm")(projected)
    heads = attention.num_heads if hasattr(attention, "num_heads") else attention.num_attention_heads
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attention_of(block: Any) -> Any:
    """The module that has a block's projections; transformers 5.17 has DINOv2's one level deeper."""
    if hasattr(block, "self_attn"):
        return block.self_attn
    return getattr(block.attention, "attention", block.attention)
