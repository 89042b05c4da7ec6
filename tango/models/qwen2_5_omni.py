"""Qwen2.5-Omni's thinker, the part that sees, hears and answers in text: Qwen2.5-VL with sound beside the video."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tango.errors import OptionError
from tango.models.about import About
from tango.models.base import EncodedVideos, register_adapter
from tango.models.calls import Inputs
from tango.models.mrope import seconds_per_step
from tango.models.processors.qwen2_5_omni import FORM, QwenOmniProcessor
from tango.models.qwen2_5_vl import Qwen2_5VlAdapter
from tango.models.splice import check_count
from tango.profiling import StageTimer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tango.containers import Signal
    from tango.models.processors.qwen import QwenForm, QwenProcessor


@register_adapter("qwen2_5_omni_thinker")
class Qwen2_5OmniAdapter(Qwen2_5VlAdapter):
    """Stock `Qwen2_5OmniThinkerForConditionalGeneration`, also where it is a part of the whole model.

    Sound is never pruned. It stays where it is in the prompt, also between the frames of a video, and stock code
    encodes it. With beams, stock code mixes up the sounds of a prompt with several, which is refused here; that of
    transformers 5.17 also mixes up the frames of videos, but not of pruned ones.

    Spoken answers need the whole prompt: the part that speaks looks up the video's places in the thinker's states. Ask
    the thinker, or the whole model with `generation_mode="text"`.
    """

    title: ClassVar[str] = "Qwen2.5-Omni"
    model_class: ClassVar[str] = "Qwen2_5OmniThinkerForConditionalGeneration"
    prunes_images: ClassVar[bool] = False  # not tried beside audio
    about: ClassVar[About] = About(
        checkpoints=("Qwen/Qwen2.5-Omni-*",),
        tokens="at most 16 x 16 for two",
        notes="answers in text; sound beside the video is kept whole, and comes from transformers' processor",
    )
    form: ClassVar[QwenForm] = FORM
    stock_is_right: ClassVar[bool] = True
    consumed: ClassVar[frozenset[str]] = Qwen2_5VlAdapter.consumed | {
        "video_second_per_grid", "use_audio_in_video", "generation_mode", "return_audio",
    }  # fmt: skip

    @classmethod
    def load_model(cls, folder: Path, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
        """As `Adapter.load_model`. Published checkpoints name the token that ends an answer in `config.json` alone."""
        model = super().load_model(folder, config, **options)
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(model.generation_config, name) is None:
                setattr(model.generation_config, name, getattr(config, name, None))
        return model

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> QwenProcessor:
        return QwenOmniProcessor.from_folder(
            folder, config, tokenizer, form=cls.form, default_num_frames=cls.default_num_frames
        )

    @classmethod
    def root(cls, model: PreTrainedModel) -> PreTrainedModel:
        return model if hasattr(model, "visual") else model.model  # transformers 5.17 has the towers one level higher

    @classmethod
    def tower(cls, model: PreTrainedModel) -> PreTrainedModel:
        return cls.root(model).visual

    @property
    def text_model(self) -> object:
        return getattr(self.root(self.model), "language_model", None) or self.model.model

    def encode_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        for name in ("generation_mode", "return_audio"):
            if inputs.get(name) not in (None, False, "text"):
                raise OptionError(
                    f"a pruned Qwen2.5-Omni answers in text alone, got {name}={inputs[name]!r}: the part that speaks "
                    f"needs the whole prompt. Leave out {name}, or remove() the pruning for spoken answers"
                )
        self._check_sounds(inputs)
        return super().encode_videos(_as_qwen(inputs), wants, timer)

    def _check_sounds(self, inputs: Inputs) -> None:
        """Refuse beams or several answers for a prompt with several sounds: stock code repeats them one by one."""
        config = inputs.get("generation_config") or self.model.generation_config
        names = ("num_beams", "num_return_sequences")
        copies = max(inputs.get(name) or getattr(config, name, None) or 1 for name in names)
        begin = inputs["input_ids"] == self.model.config.audio_start_token_id
        if copies > 1 and inputs.get("input_features") is not None and int(begin.sum(1).max()) > 1:
            raise OptionError(
                f"a prompt has {int(begin.sum(1).max())} sounds, and {copies} beams or answers would hear the wrong "
                f"ones, as stock code repeats them; leave out {' and '.join(names)}, or give one sound a prompt"
            )

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Inputs) -> Tensor:
        """Those of stock code, which are right for this family.

        It counts on the marks that end a video, and a prompt that is cut behind the frames has none: two follow here.
        """
        grids = self.token_grids(inputs, "video_grid_thw")
        check_count("video", int((input_ids == self.video_token_id).sum()), sum(map(math.prod, grids)))
        L, end = input_ids.shape[1], self.model.config.audio_end_token_id
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, attended = (torch.cat([x, x.new_full((len(x), 2), n)], 1) for x, n in ((input_ids, end), (attended, 1)))
        seconds = seconds_per_step(
            _as_qwen(inputs), [T for T, _, _ in grids], self.vision.temporal_patch_size, warn=False
        )
        mask, lengths = inputs.get("feature_attention_mask"), inputs.get("audio_feature_lengths")
        positions, _ = self.model.get_rope_index(
            ids,
            inputs.get("image_grid_thw"),
            torch.as_tensor(inputs["video_grid_thw"]),
            attended,
            bool(inputs.get("use_audio_in_video")),
            lengths if mask is None else mask.sum(-1),
            torch.tensor(seconds),
        )
        return positions[..., :L].long()


def _as_qwen(inputs: Inputs) -> dict[str, Any]:
    """The inputs with the seconds of a temporal step under Qwen2.5-VL's name."""
    return {**inputs, "second_per_grid_ts": inputs.get("video_second_per_grid")}
