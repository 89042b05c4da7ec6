"""LLaVA-OneVision: SigLIP tower, two-layer projector, bilinear pooling to half the grid, one newline per video."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import MissingSignalError, OptionError, UnsupportedModelError
from tango.models.base import (
    TOKEN_FIELDS,
    Adapter,
    EncodedImages,
    EncodedVideos,
    pooling_head_of,
    register_adapter,
)
from tango.models.frame_batches import FrameRows, frame_batches
from tango.models.pooling_head import DEFAULT_SIGLIP, PoolingHead
from tango.models.siglip import TowerStates, project, run_tower
from tango.models.timestamps import video_timestamps
from tango.ops.blocks import upload
from tango.ops.saliency import PoolingQuery, TowerBlock, block_signals
from tango.profiling import StageTimer

PositionRule = Literal["contiguous", "kept"]
_COMPILED = "compiled_tower"  # attribute of a model that stands in for `run_tower`


@register_adapter("llava_onevision")
class LlavaOnevisionAdapter(Adapter):
    """Stock `LlavaOnevisionForConditionalGeneration`.

    Args:
        positions: of the pruned prompt: "contiguous", as in the paper's release; "kept": every token keeps its
            position in the unpruned prompt.
    """

    title: ClassVar[str] = "LLaVA-OneVision"
    model_class: ClassVar[str] = "LlavaOnevisionForConditionalGeneration"
    signals: ClassVar[Signal] = Signal.SALIENCY | Signal.FRAME_EMBEDS | Signal.TIMESTAMPS | Signal.KEYS
    consumed: ClassVar[frozenset[str]] = frozenset(
        {
            "pixel_values", "pixel_values_videos", "image_sizes", "image_sizes_videos", "batch_num_images",
            "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio", "video_timestamps_s",
        }
    )  # fmt: skip
    default_num_frames: ClassVar[int] = 32
    pooling_query: ClassVar[PoolingQuery] = "head"
    # Places in the pooled 14 x 14 grid whose attention is high whatever the image (release; appendix B.3 names #28).
    sink_positions: ClassVar[tuple[int, ...]] = (28, 27, 41, 169, 11, 12)
    sink_grid: ClassVar[tuple[int, int]] = (14, 14)

    def __init__(self, model: Any, *, saliency: str = "p-attn", positions: PositionRule = "contiguous"):
        super().__init__(model, saliency=saliency)
        if positions not in ("contiguous", "kept"):
            raise OptionError(f"positions of {self.title} must be 'contiguous' or 'kept', got {positions!r}")
        self.position_rule = positions
        config = model.config
        layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
        depth = config.vision_config.num_hidden_layers
        if type(layer) is not int or strategy != "full" or not (-depth <= layer < 0 or 0 < layer <= depth):
            raise UnsupportedModelError(
                f"the llava_onevision adapter handles one vision_feature_layer of {depth} with strategy 'full', "
                f"got {layer!r} with {strategy!r}"
            )
        self.patches = config.vision_config.image_size // config.vision_config.patch_size  # per side

    @classmethod
    def tower(cls, model: Any) -> Any:
        return model.model.vision_tower

    @classmethod
    def tower_blocks(cls, model: Any) -> Any:
        return cls.tower(model).encoder.layers

    @classmethod
    def compilable(cls, model: Any) -> list[tuple[Any, str, Callable[..., Any]]]:
        return [(model, _COMPILED, run_tower)]

    @property
    def video_token_id(self) -> int:
        return self.model.config.video_token_id

    @property
    def positions_are_kept(self) -> bool:
        return self.position_rule == "kept"

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of a frame's tokens after pooling."""
        return math.ceil(self.patches / 2), math.ceil(self.patches / 2)

    def check(self, needs: Signal, method: str) -> None:
        super().check(needs, method)
        width = self.model.config.vision_config.hidden_size
        head = self._head()
        if head is not None and head.width != width:
            raise MissingSignalError(
                f"the pooling head is for a tower of width {head.width}, but this model's is {width} wide; "
                "load the SigLIP checkpoint that the tower started from"
            )
        if Signal.SALIENCY in needs and self.saliency == "p-attn" and head is None:
            reason = getattr(
                self.model, "pooling_head_missing", f"load it with tango.load(..., siglip={DEFAULT_SIGLIP!r})"
            )
            raise MissingSignalError(
                f"{method} needs saliency, and 'p-attn' saliency needs SigLIP's attention-pooling head, which LLaVA "
                f"checkpoints lack: {reason}; or use the tower's own attention with saliency='attn'"
            )
        if Signal.FRAME_EMBEDS in needs and head is None:
            raise MissingSignalError(f"{method} needs frame embeddings, which need SigLIP's attention-pooling head")

    def _head(self) -> PoolingHead | None:
        return pooling_head_of(self.model)

    def encode_videos(self, inputs: Mapping[str, Any], wants: Signal, timer: StageTimer) -> EncodedVideos:
        """Frames pass in batches; what is pooled of all of them is kept, and no hidden state longer than its batch."""
        videos = list(inputs[self.video_input])  # a (V, T, C, h, w) tensor, or tensors of unequal length
        lengths = [len(video) for video in videos]
        if not lengths or 0 in lengths:
            raise ValueError(f"{self.video_input} must hold videos of at least one frame, got frames {lengths}")
        frames = [frame for video in videos for frame in video.unbind()]
        device, dtype, width = self.model.device, self.model.dtype, self.model.config.vision_config.hidden_size
        batches = list(frame_batches([self.patches**2] * len(frames), width, dtype, device))
        head = self._head()
        head = head and head.to(device)
        rows = FrameRows(len(frames))
        for batch in batches:
            rows.add(**self._encode_frames(frames[batch], batches[0].stop, wants, head, timer))
        sinks = self.sink_positions if self.grid == self.sink_grid else ()
        given = inputs.get("video_timestamps_s")
        times = video_timestamps(given, lengths, wanted=Signal.TIMESTAMPS in wants)
        parts = {name: rows.split(name, lengths) for name in TOKEN_FIELDS}
        encoded = []
        for i, seconds in enumerate(times):
            fields: dict[str, Any] = {name: part[i] for name, part in parts.items()}
            encoded.append(VisualTokens(grid=self.grid, timestamps_s=seconds, sink_positions=sinks, **fields))
        return EncodedVideos(videos=encoded)

    def _encode_frames(
        self, frames: list[Tensor], batch_size: int, wants: Signal, head: PoolingHead | None, timer: StageTimer
    ) -> dict[str, Tensor]:
        """Pooled features of a few frames (C, h, w), and the signals that are wanted."""
        with timer.stage("tower"):
            states = self._run_tower(frames, batch_size)
        with timer.stage("prune"):
            last = self.tower_blocks(self.model)[self._depth - 1]
            block = TowerBlock(
                grid=self.grid,
                hidden=states.hidden,
                project=partial(project, last, states.entering),
                scale=last.self_attn.scale,
                pool=self.pool,
                pooling_query=self.pooling_query,
                head=head,
            )
            rows = block_signals(block, wants, self.saliency)
        hidden = states.hidden
        del states, block  # the projector is wide, so what the block entered with leaves before
        with timer.stage("project"):
            rows["features"] = self.project(hidden)
        return rows

    @property
    def _depth(self) -> int:
        """Blocks of the tower that run."""
        layer = self.model.config.vision_feature_layer
        return len(self.tower_blocks(self.model)) + 1 + layer if layer < 0 else layer

    def _run_tower(self, frames: list[Tensor], batch_size: int) -> TowerStates:
        compiled = vars(self.model).get(_COMPILED)
        padding = [] if compiled is None else frames[-1:] * (batch_size - len(frames))  # to compile for one size
        pixels = upload(torch.stack(frames + padding), self.model.device).to(self.model.dtype)
        states = (compiled or run_tower)(self.tower(self.model), self._depth, pixels)
        return TowerStates(*(x[: len(frames)] for x in states)) if padding else states

    def project(self, hidden: Tensor) -> Tensor:
        """Projector and pooling, (T, patches^2, P) -> (T, N, D).

        The projector's last layer and pooling are both linear, and the weights of pooling sum to 1. So pooling comes
        first: the same result up to rounding, for about half of the work.
        """
        projector = self.model.model.multi_modal_projector
        return projector.linear_2(self.pool(projector.act(projector.linear_1(hidden))))

    def pool(self, x: Tensor) -> Tensor:
        """Shrink the patch grid of every frame, (T, patches^2, C) -> (T, N, C), as the model does."""
        # A view, so channels stay last: the same values, and on a GPU bilinear pooling is 200 times as fast in 16 bit.
        x = x.unflatten(1, (self.patches, self.patches)).permute(0, 3, 1, 2)
        return F.interpolate(x, size=self.grid, mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)

    def encode_images(self, inputs: Mapping[str, Any]) -> EncodedImages | None:
        if inputs.get("pixel_values") is None:
            return None
        options = {k: inputs[k] for k in ("vision_aspect_ratio", "batch_num_images") if inputs.get(k) is not None}
        output = self.model.model.get_image_features(
            inputs["pixel_values"].to(self.model.dtype), inputs["image_sizes"], return_dict=True, **options
        )
        return EncodedImages(token_id=self.model.config.image_token_id, features=torch.cat(list(output.pooler_output)))

    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        T, N, _ = tokens.features.shape
        newline = self.model.model.image_newline.to(pruned.features)
        stays = torch.zeros(T * N + 1, dtype=torch.bool, device=newline.device)
        stays[pruned.indices] = True
        stays[-1] = True  # the one newline after the video
        return torch.cat([pruned.features, newline[None]]), stays

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any]) -> Tensor | None:
        del inputs
        if self.position_rule == "contiguous":
            return None
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        return attended.cumsum(dim=1) - 1  # those of padding do not count

    @classmethod
    def num_video_tokens(cls, config: Any, num_frames: int) -> int:
        side = math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)
        return num_frames * side * side + 1
