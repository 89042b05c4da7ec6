"""Qwen2.5-VL and Qwen2-VL: any frame size, two frames per temporal step, multimodal rotary positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import vision_utils

from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import OptionError, UnsupportedModelError
from tango.models.about import About
from tango.models.base import TOKEN_FIELDS, Adapter, EncodedImages, EncodedVideos, register_adapter
from tango.models.calls import Inputs
from tango.models.frame_batches import FrameRows, frame_batches
from tango.models.mrope import Grid, grid_times, mrope_positions, seconds_per_step, vision_positions
from tango.models.packed_attention import packed_attention
from tango.models.processors.qwen import MAX_PIXELS, QwenForm, QwenProcessor
from tango.models.questions import embedded_questions
from tango.models.qwen_tower import queries_or_keys, tap_block, window_order
from tango.models.reuse import Distinct, distinct_frames, reuse_of
from tango.ops.device import to_device
from tango.ops.saliency import TowerBlock, block_signals
from tango.profiling import StageTimer
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

PositionRule = Literal["correct", "kept", "stock"]
IMAGE, VIDEO = 1, 2  # kinds of placeholders


class QwenVlAdapter(Adapter):
    """The base of the Qwen-VL families. The N tokens of a frame are its merge units; T counts temporal grid steps.

    Kept tokens retain their positions in the unpruned prompt, as in the paper's release.

    Args:
        positions: "correct", as the models were trained, or "stock", as the installed transformers computes them.
            "kept" is "correct": no rule of this family numbers tokens anew.
    """

    signals: ClassVar[Signal] = Signal.SALIENCY | Signal.TIMESTAMPS | Signal.KEYS | Signal.TEXT
    consumed: ClassVar[frozenset[str]] = frozenset(
        {
            "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "second_per_grid_ts",
            "mm_token_type_ids", "rope_deltas", "video_timestamps_s", FIRST_EQUAL, "video_metadata",
        }
    )  # fmt: skip
    position_rules: ClassVar[tuple[str, ...]] = ("correct", "stock")
    default_num_frames: ClassVar[int] = 32
    positions_need_time: ClassVar[bool] = False
    form: ClassVar[QwenForm]

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn", positions: PositionRule = "correct"):
        super().__init__(model, saliency=saliency)
        if positions not in ("correct", "kept", "stock"):
            raise OptionError(f"positions of {self.title} must be 'correct' or 'stock', got {positions!r}")
        self.position_rule: str = "correct" if positions == "kept" else positions
        self.vision = model.config.vision_config
        self.merge: int = getattr(self.vision, "spatial_merge_size", 2)

    @classmethod
    def root(cls, model: PreTrainedModel) -> PreTrainedModel:
        """The part of a model that makes features of images and videos."""
        return model.model

    @classmethod
    def tower(cls, model: PreTrainedModel) -> PreTrainedModel:
        return model.model.visual

    @classmethod
    def tower_blocks(cls, model: PreTrainedModel) -> nn.ModuleList:
        return cls.tower(model).blocks

    @classmethod
    def attentions(cls, model: PreTrainedModel) -> list[nn.Module]:
        """The attention modules of the tower's blocks, in order."""
        return [block.get_submodule("attn") for block in cls.tower_blocks(model)]

    @classmethod
    def compilable(cls, model: PreTrainedModel) -> list[tuple[nn.Module, str, Callable[..., object]]]:
        return [(block, "forward", block.forward) for block in cls.tower_blocks(model)[:-1]]

    def tower_scope(self) -> AbstractContextManager[object]:
        return packed_attention(self.tower(self.model), self.attentions(self.model), self.tower_inputs)

    def tower_inputs(self, grid_thw: Tensor) -> dict[str, Tensor]:
        """Inputs of the tower that follow from the grids of its images or videos (one a row), by stock code."""
        return {
            "position_ids": vision_utils.get_vision_position_ids(grid_thw, self.merge),
            "cu_seqlens": vision_utils.get_vision_cu_seqlens(grid_thw),
        }

    def token_grids(self, inputs: Inputs, name: str) -> list[Grid]:
        """Grids after merging, (T, H, W) per image or video.

        Raises:
            ValueError: the inputs lack the grids.
        """
        if inputs.get(name) is None:
            raise ValueError(f"{name} is missing from the inputs; the processor returns it beside the pixels")
        return [(t, h // self.merge, w // self.merge) for t, h, w in torch.as_tensor(inputs[name]).tolist()]

    def _pixels(self, inputs: Inputs, name: str, grid_name: str) -> tuple[Tensor, list[Grid]]:
        """Patches of all videos, or of all images, and their grids after merging."""
        pixels, grids = torch.as_tensor(inputs[name]), self.token_grids(inputs, grid_name)
        if len(pixels) != self.merge**2 * sum(math.prod(grid) for grid in grids):
            given = torch.as_tensor(inputs[grid_name]).tolist()
            raise ValueError(f"{grid_name} {given} does not fit {len(pixels)} patches of pixels")
        return pixels, grids

    def encode_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        pixels, grids = self._pixels(inputs, self.video_input, "video_grid_thw")
        warn = self.positions_need_time or Signal.TIMESTAMPS in wants
        times = grid_times(inputs, [t for t, _, _ in grids], self.frames_per_step(self.model.config), warn=warn)
        texts = self.texts(inputs, wants, [math.prod(grid) for grid in grids])
        distinct = self.distinct_frames(inputs, [T for T, _, _ in grids])
        return self._encode(pixels, grids, times, texts, distinct, wants, timer)

    def encode_images_as_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        pixels, grids = self._pixels(inputs, "pixel_values", "image_grid_thw")
        times = [torch.zeros(T, dtype=torch.float64) for T, _, _ in grids]
        texts: Sequence[Tensor | None] = [None] * len(grids)
        if Signal.TEXT in wants:
            image, tokens = inputs["input_ids"].cpu() == self.image_token_id, [math.prod(grid) for grid in grids]
            texts = embedded_questions(self.model, inputs, "image", image, tokens, {self.video_token_id})
        distinct = distinct_frames({}, [T for T, _, _ in grids])
        return self._encode(pixels, grids, times, texts, distinct, wants, timer)

    def _encode(
        self,
        pixels: Tensor,
        grids: list[Grid],
        times: Sequence[Tensor],
        texts: Sequence[Tensor | None],
        distinct: Distinct,
        wants: Signal,
        timer: StageTimer,
    ) -> EncodedVideos:
        """Encode temporal steps in batches. The tower never mixes steps, so batches may cut a video between any two."""
        unit = self.merge**2
        patches = [unit * H * W for T, H, W in grids for _ in range(T)]
        each = pixels.split(patches)
        if (reuse := reuse_of(distinct, each)) is not None:
            pixels, patches = torch.cat([each[t] for t in distinct.frames]), [patches[t] for t in distinct.frames]
        owners = [video for video, count in enumerate(distinct.counts) for _ in range(count)]
        width = getattr(self.vision, "embed_dim", self.vision.hidden_size)
        rows, first = [FrameRows(*own) for own in zip(distinct.counts, distinct.rows, strict=True)], 0
        for batch in frame_batches(patches, width, self.model.dtype, self.device):
            steps = [(video, len(list(same))) for video, same in groupby(owners[batch])]
            shapes, count = [(n, *grids[video][1:]) for video, n in steps], sum(patches[batch])
            encoded = self._encode_steps(pixels[first : first + count], shapes, wants, timer)
            for (video, _), parts in zip(steps, encoded, strict=True):
                rows[video].add(**parts)
            first += count
        videos = []
        for own, (_, H, W), seconds, text in zip(rows, grids, times, texts, strict=True):
            fields: dict[str, Any] = {"text": text, **{name: own.get(name) for name in TOKEN_FIELDS}}
            videos.append(VisualTokens(grid=(H, W), timestamps_s=seconds, **fields))
        extras = [[x.flatten(0, 1) for x in own.rest(TOKEN_FIELDS)] for own in rows]
        return EncodedVideos(videos=videos, extras=extras, reuse=reuse)

    def _encode_steps(
        self, pixels: Tensor, grids: list[Grid], wants: Signal, timer: StageTimer
    ) -> list[dict[str, Tensor]]:
        """Features and wanted signals of a batch of temporal steps, which may belong to several videos."""
        attention, needed = self.attentions(self.model)[-1], wants & (Signal.SALIENCY | Signal.KEYS)
        block = self.tower_blocks(self.model)[-1]
        tap = tap_block(block, attention) if needed else nullcontext(dict[str, Tensor]())
        with timer.stage("tower"), tap as record:
            grid_thw = torch.tensor([(T, H * self.merge, W * self.merge) for T, H, W in grids])  # stays on the host
            output = self.video_features(to_device(pixels, self.device), grid_thw)
        lengths, first, parts = [math.prod(grid) for grid in grids], 0, []
        deeper = {f"deeper_{i}": x.split(lengths) for i, x in enumerate(self.deeper_features(output))}
        with timer.stage("prune"):
            for i, (T, H, W) in enumerate(grids):
                features = {"features": output.pooler_output[i], **{name: x[i] for name, x in deeper.items()}}
                parts.append({name: x.view(T, H * W, -1) for name, x in features.items()})
                parts[i] |= self._signals(record, first, (T, H, W), wants)
                first += T * H * W * self.merge**2
        return parts

    def _signals(self, record: dict[str, Tensor], first: int, grid: Grid, wants: Signal) -> dict[str, Tensor]:
        """Saliency and keys of one video, if they are wanted, in row-major order."""
        if not record:
            return {}
        T, H, W = grid
        unit = self.merge**2
        attention: Qwen2_5_VLVisionAttention = self.attentions(self.model)[-1]
        part = {
            name: rows[first : first + T * H * W * unit].unflatten(0, (T, H * W * unit))
            for name, rows in record.items()
        }

        def pool(x: Tensor) -> Tensor:
            x = x.unflatten(1, (H * W, unit)).mean(2)
            order = self.unit_order((H, W))
            return x if order is None else torch.empty_like(x).index_copy_(1, to_device(order, x.device), x)

        block = TowerBlock(
            grid=(H, W),
            hidden=part["hidden"],
            project=partial(queries_or_keys, part, attention.num_heads),
            scale=attention.scaling,
            pool=pool,
            pooling_query=self.pooling_query,
        )
        return block_signals(block, wants, self.saliency)

    def video_features(self, pixels: Tensor, grid_thw: Tensor) -> BaseModelOutputWithPooling:
        """Features of videos with these grids of patches, one a row, by stock code."""
        return self.root(self.model).get_video_features(pixels, grid_thw, return_dict=True)

    def unit_order(self, grid: tuple[int, int]) -> Tensor | None:
        """Row-major index of every merge unit, in the tower's order; None: the tower's order is row-major."""
        del grid
        return None

    def deeper_features(self, output: BaseModelOutputWithPooling) -> list[Tensor]:
        """The tower's features for the first layers of the LLM, one (tokens, D) tensor per layer, if it has such."""
        del output
        return []

    def encode_images(self, inputs: Inputs) -> EncodedImages | None:
        if inputs.get("pixel_values") is None:
            return None
        pixels, grid_thw = inputs["pixel_values"], torch.as_tensor(inputs["image_grid_thw"]).cpu()
        pixels = to_device(pixels, self.device)
        output = self.root(self.model).get_image_features(pixels, grid_thw, return_dict=True)
        features = torch.cat(list(output.pooler_output))
        return EncodedImages(token_id=self.image_token_id, features=features, extras=self.deeper_features(output))

    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        T, N, _ = tokens.features.shape
        keep_mask = torch.zeros(T * N, dtype=torch.bool, device=pruned.features.device)
        keep_mask[pruned.indices] = True
        return pruned.features, keep_mask

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Inputs) -> Tensor | None:
        if self.position_rule == "stock":
            return self._stock_positions(input_ids, attention_mask, inputs)
        vision = {}
        if inputs.get(self.video_input) is not None:
            vision[VIDEO] = self.video_positions(inputs)
        if inputs.get("pixel_values") is not None:
            vision[IMAGE] = [vision_positions(grid) for grid in self.token_grids(inputs, "image_grid_thw")]
        return mrope_positions(self.kinds(input_ids, inputs), attention_mask, vision)

    def kinds(self, input_ids: Tensor, inputs: Inputs) -> Tensor:
        """IMAGE and VIDEO at their placeholders, 0 at text, (B, L), as in `mm_token_type_ids`."""
        del inputs
        return IMAGE * (input_ids == self.image_token_id).int() + VIDEO * (input_ids == self.video_token_id).int()

    def video_positions(self, inputs: Inputs) -> list[Tensor]:
        """Positions of every run of video placeholders, from 0, in the order of the prompt."""
        return [vision_positions(grid) for grid in self.token_grids(inputs, "video_grid_thw")]

    def _stock_positions(self, ids: Tensor, attention_mask: Tensor | None, inputs: Inputs) -> Tensor:
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        options = {name: inputs[name] for name in names if inputs.get(name) is not None}
        positions, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=self.kinds(ids, inputs),
            attention_mask=attention_mask,
            **options,
        )
        return positions

    @classmethod
    def tokens_per_step(cls, config: PretrainedConfig) -> int:
        return MAX_PIXELS // (config.vision_config.patch_size * config.vision_config.spatial_merge_size) ** 2

    @classmethod
    def frames_per_step(cls, config: PretrainedConfig) -> int:
        return config.vision_config.temporal_patch_size

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> QwenProcessor:
        return QwenProcessor.from_folder(
            folder, config, tokenizer, form=cls.form, default_num_frames=cls.default_num_frames
        )


@register_adapter("qwen2_vl")
class Qwen2VlAdapter(QwenVlAdapter):
    """Stock `Qwen2VLForConditionalGeneration`. Temporal positions count grid steps, whatever time they take."""

    title: ClassVar[str] = "Qwen2-VL"
    prunes_images: ClassVar[bool] = True
    model_class: ClassVar[str] = "Qwen2VLForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("Qwen/Qwen2-VL-*-Instruct",),
        tokens="at most 16 x 16 for two",
        notes="kept tokens retain their M-RoPE positions; stock positions are wrong after a video",
    )
    form: ClassVar[QwenForm] = QwenForm(processor="Qwen2VLProcessor")
    stock_is_right: ClassVar[bool] = False  # stock positions are wrong, see `tango.models.mrope`


@register_adapter("qwen2_5_vl")
class Qwen2_5VlAdapter(QwenVlAdapter):
    """Stock `Qwen2_5_VLForConditionalGeneration`. Most blocks of the tower attend within windows; the last must not."""

    title: ClassVar[str] = "Qwen2.5-VL"
    prunes_images: ClassVar[bool] = True
    model_class: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("Qwen/Qwen2.5-VL-*-Instruct",),
        tokens="at most 16 x 16 for two",
        tested="random weights of the 7B's shape on an H200",
        notes="kept tokens retain their M-RoPE positions; stock positions are wrong after a video",
    )
    form: ClassVar[QwenForm] = QwenForm(processor="Qwen2_5_VLProcessor", seconds_per_step=True)
    stock_is_right: ClassVar[bool] = False  # stock positions are wrong, see `tango.models.mrope`
    positions_need_time: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn", positions: PositionRule = "correct"):
        super().__init__(model, saliency=saliency, positions=positions)
        if self.vision.depth - 1 not in self.vision.fullatt_block_indexes:
            raise UnsupportedModelError(
                "the qwen2_5_vl adapter takes saliency from the last block of the tower, which must attend to whole "
                f"frames; here only blocks {list(self.vision.fullatt_block_indexes)} of {self.vision.depth} do"
            )

    def tower_inputs(self, grid_thw: Tensor) -> dict[str, Tensor]:
        window_index, borders = vision_utils.get_vision_window_index(
            grid_thw,
            spatial_merge_size=self.merge,
            window_size=self.vision.window_size,
            patch_size=self.vision.patch_size,
        )
        return {**super().tower_inputs(grid_thw), "window_index": window_index, "cu_window_seqlens": borders}

    def unit_order(self, grid: tuple[int, int]) -> Tensor:
        return window_order(grid, self.vision.window_size // self.merge // self.vision.patch_size)

    def video_positions(self, inputs: Inputs) -> list[Tensor]:
        grids = self.token_grids(inputs, "video_grid_thw")
        steps = [t for t, _, _ in grids]
        seconds = seconds_per_step(inputs, steps, self.vision.temporal_patch_size, warn=False)
        rate = self.vision.tokens_per_second
        return [vision_positions(grid, step=s, tokens_per_second=rate) for grid, s in zip(grids, seconds, strict=True)]
