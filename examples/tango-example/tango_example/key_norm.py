"""A saliency: how long a token's keys are in the vision tower."""

from torch import Tensor

import tango
from tango.ops.saliency import TowerBlock


@tango.register_saliency("key-norm")
def key_norm(block: TowerBlock) -> Tensor:
    """Mean length over heads of the keys of a token's patches, (T, N)."""
    lengths = block.keys.norm(dim=-1).mean(1)[:, block.prefix :]  # (T, patches)
    return block.pool(lengths[..., None])[..., 0]
