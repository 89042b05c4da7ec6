"""Runs a SigLIP or CLIP vision tower up to the block whose output is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from tango.annotations import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer


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
    for block in tower.encoder.layers[first:end]:
        hidden = block(hidden, None)
    return hidden


def project(block: SiglipEncoderLayer, entering: Float[Tensor, "T p P"], name: str) -> Float[Tensor, "T heads p d"]:
    """Queries ("q") or keys ("k") of one encoder block, from its input."""
    attention = block.self_attn
    projected = getattr(attention, f"{name}_proj")(block.layer_norm1(entering))
    return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
