"""Gemma 4: whole frames of any shape, each after its time; ids that the model reads beside embeddings."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tango.annotations import Int
from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import OptionError, UnsupportedModelError
from tango.models.about import About
from tango.models.attention_tap import AttentionTap
from tango.models.base import TOKEN_FIELDS, Adapter, EncodedImages, EncodedVideos, register_adapter
from tango.models.calls import Inputs
from tango.models.fixed_grid import PositionRule
from tango.models.frame_batches import FrameRows, frame_batches
from tango.models.processors.gemma4 import Frames, Gemma4Processor, patch_positions
from tango.models.processors.timestamps import video_timestamps
from tango.models.reuse import reuse_of
from tango.models.splice import ShortPrompt, attended_positions
from tango.ops.device import to_device
from tango.ops.saliency import TowerBlock, block_signals
from tango.profiling import StageTimer
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionAttention

Grid = tuple[int, int]  # rows and columns of a frame's tokens


@register_adapter("gemma4")
class Gemma4Adapter(Adapter):
    """Stock `Gemma4ForConditionalGeneration` with a vision tower.

    The model makes two things of ids that embeddings cannot tell: embeddings for each layer (E2B, E4B), and which
    frames' tokens see each other in both directions (the larger models). Both follow the short prompt. A frame without
    kept tokens keeps its time and its marks. The tower sees frames without padding; that changes features by rounding
    alone. It has neither a pooling head nor a CLS token, so "p-attn" saliency is the attention of the mean query, as
    for Qwen-VL; no paper has measured it on this family.

    Layer pruning is refused: most layers look at a window of the prompt, whose keys the last layers take over.
    Both input forms of videos are read: frames of all videos in one row (transformers 5.20), and stacked videos (5.17).
    Unpruned, 5.17 gives beams of several videos each other's frames, and direct calls of 5.20 refuse videos; here both
    are right.
    """

    title: ClassVar[str] = "Gemma 4"
    model_class: ClassVar[str] = "Gemma4ForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("google/gemma-4-*-it",),
        tokens="at most 70, with the frame's aspect ratio",
        layer_pruning=False,
        notes="every frame follows its time (mm:ss); videos without sound; gemma4_unified has no tower and is refused",
    )
    signals: ClassVar[Signal] = Signal.SALIENCY | Signal.TIMESTAMPS | Signal.KEYS | Signal.TEXT
    consumed: ClassVar[frozenset[str]] = frozenset(
        {
            "pixel_values", "image_position_ids", "pixel_values_videos", "video_position_ids", "num_frames_per_video",
            "mm_token_type_ids", "video_timestamps_s", FIRST_EQUAL,
        }
    )  # fmt: skip
    default_num_frames: ClassVar[int] = 32
    position_rules: ClassVar[tuple[str, ...]] = ("contiguous", "kept")

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn", positions: PositionRule = "contiguous"):
        super().__init__(model, saliency=saliency)
        if positions not in self.position_rules:
            raise OptionError(f"positions of {self.title} must be 'contiguous' or 'kept', got {positions!r}")
        self.position_rule = positions
        self.vision = self.tower(model).config

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Gemma4Processor:
        return Gemma4Processor.from_folder(folder, config, tokenizer, default_num_frames=cls.usual_num_frames(config))

    @classmethod
    def tokens_per_step(cls, config: PretrainedConfig) -> int:
        vision = config.vision_config
        return math.prod(Frames(size=vision.patch_size, kernel=vision.pooling_kernel_size).grid(1, 1))

    @classmethod
    def tower(cls, model: PreTrainedModel) -> PreTrainedModel:
        if model.model.vision_tower is None:
            raise UnsupportedModelError("this Gemma 4 has no vision tower (vision_config), so it sees no videos")
        return model.model.vision_tower

    @classmethod
    def tower_blocks(cls, model: PreTrainedModel) -> nn.ModuleList:
        return cls.tower(model).encoder.layers

    @property
    def decoder(self) -> PreTrainedModel:
        raise UnsupportedModelError(
            "pruning at a layer does not work with gemma4: its layers look at sliding windows and share keys"
        )

    @property
    def positions_are_kept(self) -> bool:
        return self.position_rule == "kept"

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Inputs) -> Tensor | None:
        del inputs
        return attended_positions(input_ids, attention_mask) if self.positions_are_kept else None

    @property
    def video_token_id(self) -> int:
        return self.model.config.video_token_id

    def encode_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        """Encode the frames of each video in batches; a video's frames have one size."""
        if inputs.get("input_features") is not None:
            raise UnsupportedModelError("the gemma4 adapter prunes videos without sound; leave out input_features")
        pixels, positions, lengths = _flat_frames(inputs, self.video_input)
        grids = [self._grid(own) for own in positions.split(lengths)]
        times = video_timestamps(inputs.get("video_timestamps_s"), lengths, wanted=Signal.TIMESTAMPS in wants)
        counts = [T * math.prod(grid) for T, grid in zip(lengths, grids, strict=True)]
        texts = self.texts(inputs, wants, counts)
        distinct, frames = self.distinct_frames(inputs, lengths), pixels.unbind()
        reuse = reuse_of(distinct, frames)
        encoded = [frames[t] for t in distinct.frames]
        videos = []
        for count, own, grid, seconds, text in zip(distinct.counts, distinct.rows, grids, times, texts, strict=True):
            patches, rows = math.prod(grid) * self.vision.pooling_kernel_size**2, FrameRows(count, own)
            for batch in frame_batches([patches] * count, self.vision.hidden_size, self.model.dtype, self.device):
                rows.add(**self._encode_frames(encoded[batch], grid, wants, timer))
            del encoded[:count]
            fields: dict[str, Any] = {"text": text, **{name: rows.get(name) for name in TOKEN_FIELDS}}
            videos.append(VisualTokens(grid=grid, timestamps_s=seconds, **fields))
        return EncodedVideos(videos=videos, reuse=reuse)

    def _grid(self, positions: Int[Tensor, "T patches 2"]) -> Grid:
        """The grid of a video's frames, from the positions of their patches, on the host.

        Raises:
            ValueError: the patches do not make the same whole tokens in every frame, row by row.
        """
        k = self.vision.pooling_kernel_size
        columns, rows = (positions[0].amax(0) + 1).tolist()
        padding = (0, 0, 0, positions.shape[1] - rows * columns)
        expected = F.pad(patch_positions(rows, columns), padding, value=-1)
        if not rows * columns or rows % k or columns % k or not torch.equal(positions, expected.expand_as(positions)):
            raise ValueError(
                f"video_position_ids must count the patches of every frame of a video alike, row by row, in multiples "
                f"of {k}, with -1 for the padding behind them; the first frame seems to have {rows} x {columns}"
            )
        return rows // k, columns // k

    def _encode_frames(self, frames: list[Tensor], grid: Grid, wants: Signal, timer: StageTimer) -> dict[str, Tensor]:
        """Features of a batch of frames (patches, values) of one size, and the signals that are wanted.

        The tower's parts are called one by one: as a whole it reads from the device which patches are padding.
        """
        tower, device, k = self.tower(self.model), self.device, self.vision.pooling_kernel_size
        (H, W), last = grid, self.tower_blocks(self.model)[-1]
        attention: Gemma4VisionAttention = last.self_attn
        with timer.stage("tower"):
            pixels = to_device(torch.stack([frame[: H * W * k**2] for frame in frames]), device)
            positions = to_device(patch_positions(H * k, W * k), device).expand(len(frames), -1, -1)
            padding = torch.zeros(positions.shape[:2], dtype=torch.bool, device=device)
            states: dict[str, Tensor] = {}
            tap = AttentionTap(attention, partial(_note, states)) if wants & (Signal.SALIENCY | Signal.KEYS) else None
            try:
                embeds = tower.patch_embedder(pixels, positions, padding)
                hidden = tower.encoder(
                    inputs_embeds=embeds, attention_mask=None, pixel_position_ids=positions
                ).last_hidden_state
            finally:
                if tap is not None:
                    tap.remove()
        rows = {}
        if states:
            with timer.stage("prune"):

                def project(name: Literal["q", "k"]) -> Tensor:  # as many heads of keys as of queries
                    return states[name].repeat_interleave(states["q"].shape[1] // states[name].shape[1], dim=1)

                block = TowerBlock(
                    grid=grid,
                    hidden=hidden,
                    project=project,
                    scale=attention.scaling,
                    pool=lambda x: x.unflatten(1, (H, k, W, k)).mean((2, 4)).flatten(1, 2),
                    pooling_query=self.pooling_query,
                )
                rows = block_signals(block, wants, self.saliency)
        with timer.stage("project"):
            pooled, _ = tower.pooler(hidden, positions, padding, H * W)
            if self.vision.standardize:
                pooled = (pooled - tower.std_bias.float()) * tower.std_scale.float()
            rows["features"] = self.model.model.embed_vision(inputs_embeds=pooled.to(embeds.dtype))
        return rows

    def encode_images(self, inputs: Inputs) -> EncodedImages | None:
        if inputs.get("pixel_values") is None:
            return None
        pixels, positions = (to_device(inputs[x], self.device) for x in ("pixel_values", "image_position_ids"))
        output = self.model.model.get_image_features(pixels, positions, return_dict=True)
        return EncodedImages(token_id=self.model.config.image_token_id, features=torch.cat(list(output.pooler_output)))

    def short_inputs(self, short: ShortPrompt) -> dict[str, object]:
        """Kinds of tokens: 1 for images, 2 for videos. Those of a frame, or of an image, see each other."""
        return {"mm_token_type_ids": (short.input_ids == self.model.config.image_token_id) + 2 * short.is_video.long()}

    def beside_embeds(self, input_ids: Tensor) -> dict[str, object]:
        """The part of the layers' own embeddings that comes from ids, with pads in place of media."""
        config, decoder = self.model.config, self.model.model.language_model
        if not config.text_config.hidden_size_per_layer_input:
            return {}
        media = (input_ids == config.image_token_id) | (input_ids == config.video_token_id)
        text_ids = input_ids.masked_fill(media, config.text_config.pad_token_id)
        return {"per_layer_inputs": decoder.get_per_layer_inputs(text_ids, None)}

    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        T, N, _ = tokens.features.shape
        keep_mask = torch.zeros(T * N, dtype=torch.bool, device=pruned.features.device)
        keep_mask[pruned.indices] = True
        return pruned.features, keep_mask


def _note(states: dict[str, Tensor], queries: Tensor, keys: Tensor, _scale: float) -> None:
    states.update(q=queries, k=keys)


def _flat_frames(inputs: Inputs, name: str) -> tuple[Tensor, Tensor, list[int]]:
    """Frames of all videos in one row (frames, patches, values), their positions, and each video's number of frames.

    Raises:
        ValueError: an input is missing, or does not fit the others.
    """
    pixels, positions = torch.as_tensor(inputs[name]), inputs.get("video_position_ids")
    stacked, counts = pixels.dim() == 4, inputs.get("num_frames_per_video")
    lengths = [pixels.shape[1]] * len(pixels) if stacked else torch.as_tensor([] if counts is None else counts).tolist()
    if positions is None or tuple(positions.shape) != (*pixels.shape[:-1], 2):
        given = "none" if positions is None else tuple(positions.shape)
        raise ValueError(f"video_position_ids must have shape {(*pixels.shape[:-1], 2)}, as {name} has, got {given}")
    if stacked:
        pixels, positions = pixels.flatten(0, 1), positions.flatten(0, 1)
    if not lengths or 0 in lengths or sum(lengths) != len(pixels):
        raise ValueError(
            f"num_frames_per_video must say how many of the {len(pixels)} frames belong to each video, at least one, "
            f"got {'none' if counts is None else lengths}; the processor returns it beside the pixels"
        )
    return pixels, positions, lengths
