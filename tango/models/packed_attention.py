"""Attention of a tower like Qwen's, which packs frames and windows in one row: those of one length in one call.

With SDPA, stock code calls the attention function once per frame or window, in every block, and reads the lengths from
the device each time. Here the lengths stay on the host, and frames or windows of equal length become one batch: the
same numbers, in a fraction of the launches. Flash attention takes ragged rows as they are, so that it is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tango.annotations import Float, Int
from tango.models.qwen_tower import projections
from tango.ops.device import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

PACKED = ("cu_seqlens", "cu_window_seqlens")  # inputs of towers: borders of frames, and of windows


class Packing(NamedTuple):
    """How many frames or windows of each length a row of patches holds.

    `order` sorts the patches by the length of their window; None: windows of equal length follow each other already.
    Blocks on other devices than the first bring it there.
    """

    groups: tuple[tuple[int, int], ...]  # (number of windows, patches of each)
    order: Int[Tensor, "patches"] | None = None
    inverse: Int[Tensor, "patches"] | None = None

    @classmethod
    def of(cls, borders: Sequence[int], device: torch.device) -> Packing:
        """Make the packing of windows with these borders, 0 first.

        Example:
            >>> Packing.of([0, 4, 8, 10], torch.device("cpu")).groups
            ((2, 4), (1, 2))
        """
        ends = torch.tensor(borders)
        lengths = ends[1:] - ends[:-1]
        longest_first = lengths.argsort(descending=True, stable=True)
        counted = torch.unique_consecutive(lengths[longest_first], return_counts=True)
        groups = tuple(zip(counted[1].tolist(), counted[0].tolist(), strict=True))
        if bool((lengths[:-1] >= lengths[1:]).all()):
            return cls(groups)
        starts = ends[:-1][longest_first]
        order = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths[longest_first], strict=True)])
        return cls(groups, to_device(order, device), to_device(order.argsort(), device))

    def attend(self, attention: Callable[..., Tensor], *states: Float[Tensor, "patches heads d"]) -> Tensor:
        """Attend within every window: `attention` maps queries, keys and values (windows, heads, length, d) to
        (windows, length, heads, d). Return (patches, heads, d)."""
        if self.order is not None:
            states = tuple(x[self.order.to(x.device)] for x in states)
        sizes = [count * length for count, length in self.groups]
        pieces = zip(*(x.split(sizes) for x in states), strict=True)
        outputs = [
            attention(*(x.unflatten(0, group).transpose(1, 2) for x in piece)).flatten(0, 1)
            for group, piece in zip(self.groups, pieces, strict=True)
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output if self.inverse is None else output[self.inverse.to(output.device)]


@contextmanager
def packed_attention(
    tower: PreTrainedModel, attentions: Iterable[nn.Module], layout: Callable[..., Mapping[str, Any]]
) -> Iterator[None]:
    """While entered, let the attention modules of a tower attend to all frames or windows of one length in one call.

    Args:
        layout: makes the tower's inputs that follow from its `grid_thw` (one grid a row, on the host), and from its
            `merge_sizes` if it takes such. Borders among them are made into packings where the tower attends with SDPA,
            else they stay on the host, for flash attention on the device.
    """

    def lay_out(
        tower: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pixels = args[0] if args else kwargs["pixel_values" if "pixel_values" in kwargs else "hidden_states"]
        grid = args[1] if len(args) > 1 else kwargs["grid_thw"]
        sizes = [kwargs["merge_sizes"]] if "merge_sizes" in kwargs else []
        made = dict(layout(*(x.cpu() for x in (grid, *sizes))))  # a caller may have them on the device; Tango has not
        how = tower.config._attn_implementation
        for name, value in made.items():
            borders = name in PACKED
            if borders and how == "sdpa":
                made[name] = Packing.of(value.tolist(), pixels.device)
            elif isinstance(value, Tensor) and (not borders or "flash" in str(how)):
                made[name] = to_device(value, pixels.device)
        return args, {**made, **kwargs}

    with ExitStack() as stack:
        stack.callback(tower.register_forward_pre_hook(lay_out, with_kwargs=True).remove)
        for attention in attentions:
            stack.callback(_replace_forward(attention))
        yield


def _replace_forward(attention: Qwen2_5_VLVisionAttention) -> Callable[[], None]:
    """Let one attention module take a `Packing` in place of borders; return the undoing."""
    stock, own = attention.forward, vars(attention)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    function = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def forward(
        hidden_states: Tensor,
        cu_seqlens: Tensor | Packing,
        position_embeddings: tuple[Tensor, Tensor],
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, None]:
        if not isinstance(cu_seqlens, Packing):
            return stock(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        made = [projection(hidden_states) for projection in projections(attention)]
        states = made[0].chunk(3, dim=-1) if len(made) == 1 else made
        q, k, v = (x.unflatten(-1, (attention.num_heads, -1)) for x in states)  # (patches, heads, d)
        q, k = rotate(q, k, *position_embeddings)
        dropout = attention.attention_dropout if attention.training else 0.0

        def attend(*windows: Tensor) -> Tensor:
            options = {"dropout": dropout, "scaling": attention.scaling, "is_causal": False}
            return function(attention, *windows, attention_mask=None, **options)[0]

        attended = cu_seqlens.attend(attend, q, k, v).flatten(1)
        # SigLIP's module has the other name for the projection, and returns weights too: SDPA has none.
        return attention.proj(attended) if hasattr(attention, "proj") else (attention.out_proj(attended), None)

    before = {"forward": own["forward"]} if "forward" in own else {}  # such as a hook of accelerate's
    own["forward"] = forward

    def undo() -> None:
        own.pop("forward")
        own.update(before)

    return undo
