"""GLM-4.1V, GLM-4.5V and GLM-4.6V: like Qwen-VL, with one placeholder for videos and images, and times after frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tango.containers import Signal
from tango.errors import CheckpointError
from tango.models.about import About
from tango.models.base import EncodedImages, register_adapter
from tango.models.calls import Inputs
from tango.models.mrope import vision_positions
from tango.models.processors import stock
from tango.models.processors.glm import FORMS, GlmForm, GlmProcessor
from tango.models.processors.qwen import QwenProcessor
from tango.models.qwen2_5_vl import IMAGE, VIDEO, QwenVlAdapter

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TOKENS = "at most 16 x 16 for two"
NOTES = "times are written as the checkpoint's processor writes them; stock code takes no image beside a video"
Changed = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a module


class GlmVAdapter(QwenVlAdapter):
    """The base of the GLM-V families. Every temporal step stands in a run of its own, before its time.

    Kept tokens retain their positions in the unpruned prompt. A step without kept tokens keeps its time and its marks.
    Images beside videos are told apart by `mm_token_type_ids`; stock code cannot take both in one call.
    """

    form: ClassVar[GlmForm]

    @property
    def video_token_id(self) -> int:
        return self.model.config.image_token_id

    @property
    def guarded_token_id(self) -> int:
        return self.model.config.video_start_token_id

    def kinds(self, input_ids: Tensor, inputs: Inputs) -> Tensor:
        """As `QwenVlAdapter.kinds`.

        Raises:
            ValueError: there are images, and no `mm_token_type_ids` of the prompt's shape to tell them from videos.
        """
        placeholder = (input_ids == self.image_token_id).int()
        if inputs.get("pixel_values") is None:
            return VIDEO * placeholder
        given = inputs.get("mm_token_type_ids")
        if given is None or given.shape != input_ids.shape:
            found = "none" if given is None else f"shape {tuple(given.shape)}"
            raise ValueError(
                f"images beside videos need mm_token_type_ids of shape {tuple(input_ids.shape)}, got {found}; the "
                "processor returns them: videos and images have the same placeholder"
            )
        return placeholder * given.to(placeholder)

    def placeholders(self, input_ids: Tensor, inputs: Inputs, images: EncodedImages | None) -> tuple[Tensor, Tensor]:
        del images
        kinds = self.kinds(input_ids, inputs)
        return kinds == VIDEO, kinds == IMAGE

    def texts(self, inputs: Inputs, wants: Signal, placeholders: Sequence[int]) -> Sequence[Tensor | None]:
        """As `Adapter.texts`: the time after a video's last frame does not belong to the question."""
        ids, mask, config = inputs["input_ids"], inputs.get("attention_mask"), self.model.config
        begun, ended = ((ids == mark).cumsum(1) for mark in (config.video_start_token_id, config.video_end_token_id))
        mask = (torch.ones_like(ids) if mask is None else mask).masked_fill(begun > ended, 0)
        return super().texts({**inputs, "attention_mask": mask}, wants, placeholders)

    def video_positions(self, inputs: Inputs) -> list[Tensor]:
        grids = self.token_grids(inputs, "video_grid_thw")
        return [vision_positions((1, h, w)) for t, h, w in grids for _ in range(t)]

    def tower_inputs(self, grid_thw: Tensor) -> dict[str, Tensor]:
        made = super().tower_inputs(grid_thw)
        return {**made, "borders": made["cu_seqlens"], "grids": grid_thw}

    @contextmanager
    def tower_scope(self) -> Iterator[None]:
        """As `QwenVlAdapter.tower_scope`. This tower works with borders and grids before its blocks, on its device, so
        that what is made for the blocks passes it by as "packing"."""

        def before_tower(_tower: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Changed:
            borders, grids = given.pop("borders"), given.pop("grids")
            return args[:1], {**given, "packing": given["cu_seqlens"], "cu_seqlens": borders, "grid_thw": grids}

        def before_block(_block: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Changed:
            return args, {**given, "cu_seqlens": given.pop("packing")}

        with ExitStack() as stack:
            stack.enter_context(super().tower_scope())
            tower = self.tower(self.model)
            stack.callback(tower.register_forward_pre_hook(before_tower, with_kwargs=True).remove)
            for block in self.tower_blocks(self.model):
                stack.callback(block.register_forward_pre_hook(before_block, with_kwargs=True).remove)
            yield

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> QwenProcessor:
        """As `Adapter.make_processor`. The checkpoint's files say how it writes times; else its type does.

        Raises:
            CheckpointError: they name the processor of another family.
        """
        name = stock.processor_name(folder) or cls.form.processor
        if name not in FORMS:
            raise CheckpointError(f"{folder} names the processor {name}; {cls.title} has {' or '.join(FORMS)}")
        return GlmProcessor.from_folder(
            folder, config, tokenizer, form=FORMS[name], default_num_frames=cls.default_num_frames
        )


@register_adapter("glm4v")
class Glm4vAdapter(GlmVAdapter):
    """Stock `Glm4vForConditionalGeneration`: GLM-4.1V, GLM-4.6V-Flash."""

    title: ClassVar[str] = "GLM-4.1V"
    model_class: ClassVar[str] = "Glm4vForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("zai-org/GLM-4.1V-9B-*", "zai-org/GLM-4.6V-Flash"),
        tokens=TOKENS,
        notes=NOTES,
    )
    form: ClassVar[GlmForm] = FORMS["Glm4vProcessor"]


@register_adapter("glm4v_moe")
class Glm4vMoeAdapter(GlmVAdapter):
    """Stock `Glm4vMoeForConditionalGeneration`: GLM-4.5V, GLM-4.6V."""

    title: ClassVar[str] = "GLM-4.5V"
    model_class: ClassVar[str] = "Glm4vMoeForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("zai-org/GLM-4.5V", "zai-org/GLM-4.6V"),
        tokens=TOKENS,
        notes=NOTES,
    )
    form: ClassVar[GlmForm] = FORMS["Glm4vProcessor"]


@register_adapter("glm46v")
class Glm46vAdapter(GlmVAdapter):
    """Stock `Glm46VForConditionalGeneration`."""

    title: ClassVar[str] = "GLM-4.6V"
    model_class: ClassVar[str] = "Glm46VForConditionalGeneration"
    about: ClassVar[About] = About(
        tokens=TOKENS,
        notes=f"published GLM-4.6V models are of the other two types; {NOTES}",
    )
    form: ClassVar[GlmForm] = FORMS["Glm46VProcessor"]
