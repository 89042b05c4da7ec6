"""PerceptionLM: a tower of timm's, whose queries and keys are rotated, and average pooling after the projector."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tango.containers import Signal
from tango.errors import MissingSignalError, OptionError, UnsupportedModelError
from tango.models.about import About
from tango.models.base import Adapter, EncodedImages, register_adapter
from tango.models.calls import Inputs
from tango.models.fixed_grid import FixedGridAdapter, PositionRule
from tango.ops.device import to_device
from tango.ops.saliency import PoolingQuery, TowerBlock, block_signals
from tango.profiling import StageTimer
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@register_adapter("perception_lm")
class PerceptionLmAdapter(FixedGridAdapter):
    """Stock `PerceptionLMForConditionalGeneration`; its tower needs the package timm.

    "p-attn" saliency is the attention of the CLS token in the last block, and that token's state the frame embedding.
    Towers without CLS (`vision_use_cls_token`) take the mean query instead, and have no frame embeddings. No paper has
    measured either on this family.

    Raises:
        UnsupportedModelError: the tower has other tokens before its patches than one CLS token or none, or is no Eva of
            timm's; or the patches do not fill the pooled tokens.
    """

    title: ClassVar[str] = "PerceptionLM"
    model_class: ClassVar[str] = "PerceptionLMForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("facebook/Perception-LM-*",),
        tokens="16 x 16",
        notes=(
            "needs timm; without a CLS token `p-attn` is of the mean query; its processor is transformers' own and "
            "needs torchvision"
        ),
    )
    consumed: ClassVar[frozenset[str]] = frozenset(
        {"pixel_values", "pixel_values_videos", "video_timestamps_s", FIRST_EQUAL}
    )
    default_num_frames: ClassVar[int] = 32
    pooling_query: ClassVar[PoolingQuery] = "cls"

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn", positions: PositionRule = "contiguous"):
        Adapter.__init__(self, model, saliency=saliency)
        if positions not in ("contiguous", "kept"):
            raise OptionError(f"positions of {self.title} must be 'contiguous' or 'kept', got {positions!r}")
        self.position_rule = positions
        self.timm: Any = self.tower(model).timm_model
        self.prefix = getattr(self.timm, "num_prefix_tokens", None)
        wanted, rows, ratio = int(model.config.vision_use_cls_token), 0, model.config.projector_pooling_ratio
        if hasattr(self.timm, "patch_embed"):
            rows, columns = self.timm.patch_embed.grid_size
            rows = rows if rows == columns else 0
        if self.prefix != wanted or not rows or rows % ratio or not hasattr(self.timm.blocks[-1].attn, "rotate_half"):
            raise UnsupportedModelError(
                f"the perception_lm adapter handles timm's Eva towers with {wanted} token before square grids that "
                f"{ratio} divides, got {type(self.timm).__name__} with {self.prefix} before {rows} rows"
            )
        self.patches, self.grid = rows, (rows // ratio,) * 2

    @classmethod
    def side(cls, config: PretrainedConfig) -> int:
        """As `FixedGridAdapter.side`; sizes that the config does not give are those in the architecture's name."""
        vision = config.vision_config
        named, given = re.search(r"patch(\d+)_(\d+)", vision.architecture), vision.model_args or {}
        sizes = dict(zip(("patch_size", "img_size"), named.groups() if named else (), strict=False))
        patch, size = (_side({**sizes, **given}.get(name)) for name in ("patch_size", "img_size"))
        return size // patch // config.projector_pooling_ratio

    @classmethod
    def tower_blocks(cls, model: PreTrainedModel) -> nn.ModuleList:
        return cls.tower(model).timm_model.blocks

    @classmethod
    def compilable(cls, model: PreTrainedModel) -> list[tuple[nn.Module, str, Callable[..., object]]]:
        del model
        return []

    @property
    def tower_width(self) -> int:
        return self.timm.num_features

    def check(self, needs: Signal, method: str) -> None:
        super().check(needs, method)
        if Signal.FRAME_EMBEDS in needs and not self.prefix:
            raise MissingSignalError(f"{method} needs frame embeddings, which this tower without a CLS token lacks")

    def _encode_frames(
        self, frames: list[Tensor], batch_size: int, wants: Signal, timer: StageTimer
    ) -> dict[str, Tensor]:
        del batch_size
        attention, prefix = self.timm.blocks[-1].attn, self.prefix
        tap = _tap(attention) if wants & (Signal.SALIENCY | Signal.KEYS) else nullcontext(dict[str, Tensor]())
        with timer.stage("tower"), tap as states:
            pixels = to_device(torch.stack(frames), self.device).to(self.model.dtype)
            hidden = self.timm.forward_features(pixels)
        with timer.stage("prune"):
            block = TowerBlock(
                grid=self.grid,
                hidden=hidden[:, prefix:],
                project=lambda name: _rotated(states, name, attention),
                scale=attention.scale,
                pool=self.pool,
                pooling_query=self.pooling_query if prefix else "mean",
                cls=hidden[:, 0] if prefix else None,
            )
            rows = block_signals(block, wants, self.saliency)
        with timer.stage("project"):
            rows["features"] = self.model.model.multi_modal_projector(hidden[:, prefix:])
        return rows

    def encode_images(self, inputs: Inputs) -> EncodedImages | None:
        if inputs.get("pixel_values") is None:
            return None
        pixels = to_device(inputs["pixel_values"], self.device)  # (images, tiles, 3, h, w)
        output = self.model.model.get_image_features(pixel_values=pixels, return_dict=True)
        return EncodedImages(token_id=self.model.config.image_token_id, features=output.pooler_output.flatten(0, 1))


def _side(size: Any) -> int:
    """Pixels per side; timm takes one number or two."""
    if size is None:
        raise UnsupportedModelError("this PerceptionLM's vision_config says neither patch_size nor img_size")
    return int(size[0] if isinstance(size, (list, tuple)) else size)


@contextmanager
def _tap(attention: Any) -> Iterator[dict[str, Tensor]]:
    """While entered, note queries "q" and keys "k" (T, heads, prefixed, d) before they are rotated, and the "rope"."""
    states: dict[str, Tensor] = {}
    handles = [
        attention.register_forward_pre_hook(
            lambda _m, _args, kwargs: states.update(rope=kwargs["rope"]), with_kwargs=True
        ),
        attention.q_norm.register_forward_hook(lambda _m, _args, output: states.update(q=output)),
        attention.k_norm.register_forward_hook(lambda _m, _args, output: states.update(k=output)),
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _rotated(states: dict[str, Tensor], name: Literal["q", "k"], attention: Any) -> Tensor:
    """Rotate the patches' queries or keys as timm does; the CLS token has no place in the frame."""
    from timm.layers import apply_rot_embed_cat

    x, prefix = states[name], attention.num_prefix_tokens
    patches = apply_rot_embed_cat(x[:, :, prefix:], states["rope"], half=attention.rotate_half)
    return torch.cat([x[:, :, :prefix], patches], dim=2).to(x.dtype)
