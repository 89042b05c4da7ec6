"""Qwen3-VL: like Qwen2.5-VL without windows; frames follow their times as text, and deeper layers get features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import vision_utils

from tango.models.about import About
from tango.models.base import EncodedImages, register_adapter
from tango.models.calls import Call, Inputs, cache_of
from tango.models.mrope import vision_positions
from tango.models.processors.qwen import HALF, QwenForm
from tango.models.qwen2_5_vl import QwenVlAdapter
from tango.models.splice import ShortPrompt

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPooling


@register_adapter("qwen3_vl")
class Qwen3VlAdapter(QwenVlAdapter):
    """Stock `Qwen3VLForConditionalGeneration`, and the base of the families with its tower and its prompts.

    The first decoder layers add features of earlier tower blocks to the visual tokens ("deepstack"). A kept token
    brings its own features there, also where the token itself was merged with others. A frame without kept tokens keeps
    its time and its marks in the prompt.
    """

    title: ClassVar[str] = "Qwen3-VL"
    prunes_images: ClassVar[bool] = True
    model_class: ClassVar[str] = "Qwen3VLForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("Qwen/Qwen3-VL-*-Instruct",),
        tokens="at most 14 x 14 for two",
        notes="deepstack features are pruned along; a frame without tokens keeps its time",
    )
    form: ClassVar[QwenForm] = QwenForm(
        processor="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
        frames_carry_time=True,
        system_turn=False,
        mean=HALF,
        std=HALF,
    )

    def tower_inputs(self, grid_thw: Tensor) -> dict[str, Tensor]:
        tower = self.tower(self.model)
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid_thw,
            tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=self.merge,
        )
        return {**super().tower_inputs(grid_thw), "interp_indices": indices, "interp_weights": weights}

    def deeper_features(self, output: BaseModelOutputWithPooling) -> list[Tensor]:
        return [_flat(layer) for layer in output.deepstack_features]

    def video_positions(self, inputs: Inputs) -> list[Tensor]:
        """As `QwenVlAdapter.video_positions`: every frame is a run of its own, after its time."""
        grids = self.token_grids(inputs, "video_grid_thw")
        return [vision_positions((1, h, w)) for t, h, w in grids for _ in range(t)]

    def prefill_scope(
        self, deeper: list[list[Tensor]], images: EncodedImages | None, short: ShortPrompt, call: Call
    ) -> AbstractContextManager[object]:
        is_image = (short.input_ids == self.image_token_id) & short.attention_mask.bool()
        layers = []
        for i, parts in enumerate(zip(*deeper, strict=True)):
            rows = torch.zeros_like(short.inputs_embeds)
            rows = rows.masked_scatter(short.is_video[..., None], torch.cat(parts).to(rows))
            if images is not None:
                rows = rows.masked_scatter(is_image[..., None], images.extras[i].to(rows))
            layers.append(rows)
        if not layers:  # `deepstack_visual_indexes` may be empty
            return nullcontext()
        return hand_over_deepstack(self.model.model.language_model, layers, call)


@register_adapter("qwen3_vl_moe")
class Qwen3VlMoeAdapter(Qwen3VlAdapter):
    """Stock `Qwen3VLMoeForConditionalGeneration`: Qwen3-VL with a mixture of experts in its decoder."""

    title: ClassVar[str] = "Qwen3-VL-MoE"
    model_class: ClassVar[str] = "Qwen3VLMoeForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("Qwen/Qwen3-VL-*-A*B-Instruct",),
        tokens="at most 14 x 14 for two",
        notes="as Qwen3-VL, with experts",
    )


def _flat(layer: Tensor | Iterable[Tensor]) -> Tensor:
    """One tensor for a layer's features: transformers 5.17 returns one per layer, 5.23 one per layer and video."""
    return layer if isinstance(layer, Tensor) else torch.cat(list(layer))


@contextmanager
def hand_over_deepstack(language_model: nn.Module, layers: list[Tensor], call: Call) -> Iterator[None]:
    """While entered, add `layers`, (B, S, D) each, to the states of the prompt after the first decoder layers.

    Passes that do not belong to the call are left alone. With a cache the hook removes itself after the prompt.
    """
    B, S, _ = layers[0].shape

    def add(
        _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if not call.own:
            return None
        embeds, cache = kwargs["inputs_embeds"], cache_of(kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        if past >= S:
            return None
        count = min(S - past, embeds.shape[1])
        repeats = len(embeds) // B  # beams, or several samples per prompt
        beyond = (0, 0, 0, embeds.shape[1] - count)  # tokens after the prompt, as in assisted decoding
        rows = [pad(layer[:, past : past + count].repeat_interleave(repeats, dim=0), beyond) for layer in layers]
        if cache is not None and past + count >= S:
            handle.remove()
        # Stock code adds to `states[visual_pos_masks]`. A mask would make the host wait for its number
        # of tokens, layer by layer. An index of all prompts does not; where they have text, `rows` are zero.
        everywhere = torch.arange(len(embeds), device=embeds.device)
        return args, {**kwargs, "visual_pos_masks": everywhere, "deepstack_visual_embeds": rows}

    handle = language_model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
