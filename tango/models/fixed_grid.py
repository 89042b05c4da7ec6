"""The base of LLaVA-like families: a SigLIP, CLIP or DINOv2 tower encodes frames of one size one by one, as grids of
patches.

A family says how patches become tokens (`project`, `pool`, `side`) and which newlines stand between them in the prompt
(`newlines`); the rest is here. `llava_next_video.py` is the example; `smolvlm.py` is that of a family where images and
videos share their input (`mixed_media.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import MissingSignalError, OptionError, UnsupportedModelError
from tango.models.base import TOKEN_FIELDS, Adapter, EncodedImages, EncodedVideos, pooling_head_of
from tango.models.calls import Inputs
from tango.models.frame_batches import FrameRows, frame_batches
from tango.models.merging import MergedFrames, Merger, concatenated, merged_states
from tango.models.placement import weight_of
from tango.models.pooling_head import DEFAULT_SIGLIP, PoolingHead, siglip_of
from tango.models.processors.timestamps import video_timestamps
from tango.models.reuse import reuse_of
from tango.models.siglip import TowerStates, blocks_of, embed, project, run_blocks, run_tower, scale_of
from tango.models.splice import attended_positions
from tango.ops.device import to_device
from tango.ops.saliency import PoolingQuery, TowerBlock, block_signals
from tango.profiling import StageTimer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PositionRule = Literal["contiguous", "kept"]
_COMPILED = "compiled_tower"  # attribute of a model that stands in for `run_tower`


class FixedGridAdapter(Adapter):
    """Pools the patches of every frame to `side` x `side` tokens.

    Args:
        positions: the rule for positions in the pruned prompt. "contiguous", as in the paper's release, or "kept":
            every token keeps its position in the unpruned prompt.
    Raises:
        UnsupportedModelError: the config asks for several feature layers, or for a strategy that does not suit the
            tower: "default" drops the CLS token, "full" is for towers without one.

    Example:
        >>> from tango.models.llava_onevision import LlavaOnevisionAdapter
        >>> adapter = LlavaOnevisionAdapter(model, positions="kept")
        >>> isinstance(adapter, FixedGridAdapter), adapter.grid == (adapter.side(model.config),) * 2
        (True, True)
    """

    signals: ClassVar[Signal] = Signal.SALIENCY | Signal.FRAME_EMBEDS | Signal.TIMESTAMPS | Signal.KEYS | Signal.TEXT
    position_rules: ClassVar[tuple[str, ...]] = ("contiguous", "kept")
    image_options: ClassVar[tuple[str, ...]] = ()  # inputs that `get_image_features` takes beside pixels and sizes
    # Positions that attract attention whatever the image shows; they hold for a grid of this size alone.
    sink_positions: ClassVar[tuple[int, ...]] = ()
    sink_grid: ClassVar[tuple[int, int] | None] = None
    _moved: PoolingHead | None = None  # the head on the model's device, where it lies on another

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn", positions: PositionRule = "contiguous"):
        super().__init__(model, saliency=saliency)
        if positions not in ("contiguous", "kept"):
            raise OptionError(f"positions of {self.title} must be 'contiguous' or 'kept', got {positions!r}")
        self.position_rule = positions
        config = model.config
        depth, wanted = config.vision_config.num_hidden_layers, "default" if self.query == "cls" else "full"
        layer = getattr(config, "vision_feature_layer", -1)  # families without a choice use the last
        strategy = getattr(config, "vision_feature_select_strategy", wanted)
        if type(layer) is not int or strategy != wanted or not (-depth <= layer < 0 or 0 < layer <= depth):
            raise UnsupportedModelError(
                f"the {config.model_type} adapter handles one vision_feature_layer of {depth} with strategy "
                f"{wanted!r}, got {layer!r} with {strategy!r}"
            )
        self.patches = self.patches_per_side(config)
        self.grid = (self.side(config),) * 2  # (H, W) of a frame's tokens

    @classmethod
    def patches_per_side(cls, config: PretrainedConfig) -> int:
        """Patches per side of a frame, which is square; some configs say so by height and width."""
        vision = config.vision_config
        size, patch = (x if isinstance(x, int) else x[0] for x in (vision.image_size, vision.patch_size))
        return size // patch

    @property
    def query(self) -> PoolingQuery:
        """What "p-attn" saliency means for this model's tower."""
        return self.pooling_query_of(self.model.config)

    @classmethod
    def side(cls, config: PretrainedConfig) -> int:
        """Tokens per side of a frame."""
        return cls.patches_per_side(config) // 2

    @classmethod
    def tokens_per_step(cls, config: PretrainedConfig) -> int:
        return cls.side(config) ** 2

    @classmethod
    def tower(cls, model: PreTrainedModel) -> PreTrainedModel:
        return model.model.vision_tower

    @classmethod
    def tower_blocks(cls, model: PreTrainedModel) -> nn.ModuleList:
        return blocks_of(cls.tower(model))

    @classmethod
    def compilable(cls, model: PreTrainedModel) -> list[tuple[nn.Module, str, Callable[..., object]]]:
        return [(model, _COMPILED, run_tower)]

    @property
    def tower_width(self) -> int:
        """P, channels of the tower's hidden states."""
        return self.model.config.vision_config.hidden_size

    def check(self, needs: Signal, method: str) -> None:
        super().check(needs, method)
        if self.query != "head":
            return
        width, head = self.model.config.vision_config.hidden_size, self.head()
        if head is not None and head.width != width:
            raise MissingSignalError(
                f"the pooling head is for a tower of width {head.width}, but this model's is {width} wide; "
                "load the SigLIP checkpoint that the tower started from"
            )
        if Signal.SALIENCY in needs and self.saliency == "p-attn" and head is None:
            known = siglip_of(self.model.config.vision_config) or DEFAULT_SIGLIP
            reason = getattr(self.model, "pooling_head_missing", f"load it with tango.load(..., siglip={known!r})")
            raise MissingSignalError(
                f"{method} needs saliency, and 'p-attn' saliency needs SigLIP's attention-pooling head, which "
                f"{self.title} checkpoints lack: {reason}; or use the tower's own attention with saliency='attn'"
            )
        if Signal.FRAME_EMBEDS in needs and head is None:
            raise MissingSignalError(f"{method} needs frame embeddings, which need SigLIP's attention-pooling head")

    def head(self) -> PoolingHead | None:
        """SigLIP's attention-pooling head, for families whose "p-attn" is that head's; None: there is none."""
        head, device = pooling_head_of(self.model) if self.query == "head" else None, self.device
        if head is None or head.device == device:
            return head
        if self._moved is None or self._moved.device != device or self._moved.digest != head.digest:
            self._moved = head.to(device)  # once: as large as two blocks of the tower
        return self._moved

    def videos(self, inputs: Inputs) -> list[Tensor]:
        """The frames (T, C, h, w) of every video, in the order of their placeholders."""
        return list(inputs[self.video_input])  # a (V, T, C, h, w) tensor, or tensors of unequal length

    def project(self, hidden: Tensor) -> Tensor:
        """Turn the tower's hidden states of the patches, (T, patches^2, P), into features (T, N, D)."""
        return self.pool(self.model.model.multi_modal_projector(hidden))

    def pool(self, x: Tensor) -> Tensor:
        """Shrink the patch grid of every frame as the model does, (T, patches^2, C) -> (T, N, C): here by averages.

        Rows and columns that do not fill a token are left out.
        """
        # A view keeps channels last in memory: the values are the same, and 16-bit pooling on a GPU is far faster.
        x = x.unflatten(1, (self.patches, self.patches)).permute(0, 3, 1, 2)
        return F.avg_pool2d(x, self.patches // self.grid[0]).permute(0, 2, 3, 1).flatten(1, 2)

    def encode_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        """Encode frames in batches. Pooled rows of all frames are kept, hidden states only of the current batch."""
        videos = self.videos(inputs)
        lengths = [len(video) for video in videos]
        if not lengths or 0 in lengths:
            raise ValueError(f"{self.video_input} must hold videos of at least one frame, got frames {lengths}")
        times = video_timestamps(inputs.get("video_timestamps_s"), lengths, wanted=Signal.TIMESTAMPS in wants)
        texts = self.texts(inputs, wants, [self.num_video_tokens(self.model.config, length) for length in lengths])
        if self.tower_merger is not None:
            return self._encode_merging(videos, times, texts, self.tower_merger, wants, timer)
        frames = [frame for video in videos for frame in video.unbind()]
        distinct = self.distinct_frames(inputs, lengths)
        reuse = reuse_of(distinct, frames)
        frames = [frames[t] for t in distinct.frames]
        device, dtype, width = self.device, self.model.dtype, self.tower_width
        batches = list(frame_batches([self.patches**2] * len(frames), width, dtype, device))
        rows = FrameRows(len(frames), distinct.flat_rows)
        for batch in batches:
            rows.add(**self._encode_frames(frames[batch], batches[0].stop, wants, timer))
        parts = {name: rows.split(name, lengths) for name in TOKEN_FIELDS}
        encoded = []
        for i, seconds in enumerate(times):
            fields: dict[str, Any] = {"text": texts[i], **{name: part[i] for name, part in parts.items()}}
            encoded.append(VisualTokens(grid=self.grid, timestamps_s=seconds, sink_positions=self._sinks, **fields))
        return EncodedVideos(videos=encoded, reuse=reuse)

    @property
    def _sinks(self) -> tuple[int, ...]:
        known = self.grid == self.sink_grid and self.query == self.pooling_query  # in the family's usual tower alone
        return self.sink_positions if known else ()

    def check_merger(self, merger: Merger) -> None:
        super().check_merger(merger)
        if merger.after[-1] > self._depth - 2:  # saliency is read in the last block
            raise OptionError(
                f"{merger.name} merges frames after blocks {', '.join(map(str, merger.after))}, but of this tower's "
                f"{self._depth} blocks the last that it may follow is number {self._depth - 2}"
            )

    def _encode_merging(
        self,
        videos: list[Tensor],
        times: Sequence[Tensor],
        texts: Sequence[Tensor | None],
        merger: Merger,
        wants: Signal,
        timer: StageTimer,
    ) -> EncodedVideos:
        """Encode videos one by one, and let `merger` merge frames between blocks; states of all frames are held."""
        if _COMPILED in vars(self.model):
            raise UnsupportedModelError(f"{merger.name} works between blocks of the tower; remove() its compilation")
        encoded, merged, device = [], [], self.device
        width, tower = self.tower_width, self.tower(self.model)

        def batches(count: int) -> Iterator[slice]:
            return frame_batches([self.patches**2] * count, width, self.model.dtype, device)

        def run(hidden: Tensor, first: int, end: int) -> Tensor:
            return concatenated([run_blocks(tower, hidden[batch], first, end) for batch in batches(len(hidden))])

        for video, seconds, text in zip(videos, times, texts, strict=True):
            with timer.stage("tower"):
                pixels = [to_device(video[batch], device).to(self.model.dtype) for batch in batches(len(video))]
                hidden = concatenated([embed(tower, part) for part in pixels])
                frames = merged_states(hidden, merger, run, self._depth - 1)
            rows = FrameRows(len(frames.hidden))
            for batch in batches(len(frames.hidden)):
                with timer.stage("tower"):
                    states = TowerStates(frames.hidden[batch], run(frames.hidden[batch], self._depth - 1, self._depth))
                rows.add(**self._rows_of(states, wants, timer))
            fields: dict[str, Any] = {"text": text, **{name: rows.get(name) for name in TOKEN_FIELDS}}
            fields["timestamps_s"] = seconds.index_select(0, to_device(frames.sources, seconds.device))
            encoded.append(VisualTokens(grid=self.grid, sink_positions=self._sinks, groups=frames.groups, **fields))
            merged.append(MergedFrames(num_frames=len(video), sources=frames.sources))
        return EncodedVideos(videos=encoded, merged=merged)

    def _encode_frames(
        self, frames: list[Tensor], batch_size: int, wants: Signal, timer: StageTimer
    ) -> dict[str, Tensor]:
        """Pooled features of a batch of frames (C, h, w), and the signals that are wanted."""
        with timer.stage("tower"):
            states = self._run_tower(frames, batch_size)
        return self._rows_of(states, wants, timer)

    def _rows_of(self, states: TowerStates, wants: Signal, timer: StageTimer) -> dict[str, Tensor]:
        """Pooled features and wanted signals, from input and output of the last block."""
        prefix = states.hidden.shape[1] - self.patches**2
        hidden = states.hidden[:, prefix:]
        with timer.stage("prune"):
            last = self.tower_blocks(self.model)[self._depth - 1]
            block = TowerBlock(
                grid=self.grid,
                hidden=hidden,
                project=partial(project, last, states.entering),
                scale=scale_of(last),
                pool=self.pool,
                pooling_query=self.query,
                head=self.head(),
                cls=states.hidden[:, 0] if prefix else None,
            )
            rows = block_signals(block, wants, self.saliency)
        del states, block  # the projector is wide, so the block's input is freed before it runs
        with timer.stage("project"):
            rows["features"] = self.project(hidden)
        return rows

    @property
    def _depth(self) -> int:
        """How many blocks of the tower run."""
        layer = getattr(self.model.config, "vision_feature_layer", -1)
        return len(self.tower_blocks(self.model)) + 1 + layer if layer < 0 else layer

    def _run_tower(self, frames: list[Tensor], batch_size: int) -> TowerStates:
        compiled = vars(self.model).get(_COMPILED)
        padding = [] if compiled is None else frames[-1:] * (batch_size - len(frames))  # one size to compile for
        pixels = to_device(torch.stack(frames + padding), self.device).to(self.model.dtype)
        states = (compiled or run_tower)(self.tower(self.model), self._depth, pixels)
        return TowerStates(*(x[: len(frames)] for x in states)) if padding else states

    def encode_images(self, inputs: Inputs) -> EncodedImages | None:
        if inputs.get("pixel_values") is None:
            return None
        options = {name: inputs[name] for name in self.image_options if inputs.get(name) is not None}
        output = self.model.model.get_image_features(
            to_device(inputs["pixel_values"], self.device).to(self.model.dtype),
            inputs["image_sizes"],
            return_dict=True,
            **options,
        )
        return EncodedImages(token_id=self.model.config.image_token_id, features=torch.cat(list(output.pooler_output)))

    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        """As `Adapter.lay_out`. No ratio counts newlines: the newline after a video is always kept, the newline of a
        row if any token of the row is kept, or with `keep_newlines`."""
        (T, N, _), (H, W), K = tokens.features.shape, tokens.grid, len(pruned.indices)
        keep_mask = torch.zeros(T * N, dtype=torch.bool, device=pruned.indices.device)
        keep_mask[pruned.indices] = True
        if self.newlines == "none":
            return pruned.features, keep_mask
        newline = weight_of(self.model.model, "image_newline").to(pruned.features)
        embeds = torch.cat([pruned.features, newline[None]])
        if self.newlines == "video":
            return embeds, F.pad(keep_mask, (0, 1), value=True)
        # For each placeholder (T*H rows of W tokens and a newline): its row of `embeds`, -1 where it is dropped.
        source = torch.where(keep_mask, keep_mask.cumsum(0) - 1, -1).view(T * H, W)
        if self.keep_newlines:
            newline, num_kept = source.new_full((T * H, 1), K), K + T * H
        else:
            newline = torch.where((source >= 0).any(dim=1, keepdim=True), K, -1)
            num_kept = K + int((newline >= 0).sum())  # how many rows are touched, the device alone knows
        source = torch.cat([source, newline], dim=1).flatten()
        keep_mask = source >= 0
        kept = keep_mask.byte().sort(descending=True, stable=True).indices[:num_kept]
        return embeds[source[kept]], keep_mask

    @property
    def positions_are_kept(self) -> bool:
        return self.position_rule == "kept"

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Inputs) -> Tensor | None:
        del inputs
        return attended_positions(input_ids, attention_mask) if self.positions_are_kept else None
