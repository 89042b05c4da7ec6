"""What people want to know of a model family before they use it; `tango models` prints it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class About:
    """What no other field of an adapter says.

    Attributes:
        checkpoints: names on the hub, with * for what differs.
        tokens: visual tokens of a frame of the usual size.
        layer_pruning: whether intra-LLM methods work on its language model.
        tested: on which weights, beside tiny random ones in the real class.
        notes: what a user must know.

    Example:
        >>> tango.models.adapter_class("qwen3_vl").about.layer_pruning
        True
    """

    checkpoints: tuple[str, ...] = ()
    tokens: str = ""
    layer_pruning: bool = True
    tested: str = ""
    notes: str = ""
