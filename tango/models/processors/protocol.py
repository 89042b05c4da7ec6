"""What users call on a transformers processor, as one base class for Tango's own processors and wrapped stock ones."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tango.containers import Video
from tango.errors import MissingPartError, OptionError
from tango.models.processors.messages import (
    TimeInstruction,
    Turn,
    check_texts,
    load_media,
    media,
    read_turns,
    reserved_tokens,
    tell_times,
    without_media,
)
from tango.video.images import read_image
from tango.video.reading import load_video

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
    from transformers.video_utils import VideoMetadata

# Options for `__call__`, not for the chat template; like transformers, `apply_chat_template` takes both.
_OF_THE_CALL = (
    "video_timestamps",
    "video_pixels",
    "vision_marks",
    "padding",
    "padding_side",
    "truncation",
    "max_length",
    "add_special_tokens",
)


class ChatProtocol(ABC):
    """What users call on a processor of transformers, built on the attributes below and `__call__`.

    A method of transformers' processors that is missing here raises `MissingPartError`, which names the way out.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    video_token: str
    image_token: str | None = None
    default_num_frames: int
    time_instruction: TimeInstruction = "none"
    media_input_names: Sequence[str]

    @property
    def placeholder(self) -> str:
        """The token that stands for one visual token of a video in the ids."""
        return self.video_token

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> BatchFeature:
        """Make inputs from `text`, `videos=None`, `images=None`, `video_timestamps=True` and further options.

        Videos are `Video`s or frames (T, h, w, 3); images are Pillow images, a list per prompt. With
        `video_pixels=False` the videos' pixels are left out, and everything else is as with them.
        """

    def __getattr__(self, name: str) -> Any:
        from transformers import ProcessorMixin

        if name.startswith("_") or not hasattr(ProcessorMixin, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise MissingPartError(
            f"Tango's processor has no {name}; use tango.prepare, or transformers' own for this checkpoint: "
            "AutoProcessor.from_pretrained(folder)"
        )

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Make a prompt, or the inputs of `model.generate`, from a conversation or a batch of them.

        Parts of type "video" hold what `tango.read_video` takes, under "video", "path" or "url"; parts of type "image"
        hold a path, bytes or a Pillow image.

        Args:
            processor_kwargs: options for reading media, `num_frames`, `fps`, `backend` and `time_instruction`, as in
                `tango.prepare`; `video_timestamps=True`, which adds `video_timestamps_s` and `video_first_equal`; and
                options of the tokenizer. Each may also be among `options`. A pruned model reads both inputs, a stock
                model refuses them; without times frames count as one second apart, as a warning says.
            options: `continue_final_message`, `tools`, `documents`, and variables of the template.
        Returns:
            Text, or a list of texts; with `tokenize` the ids (B, S); with `return_dict` all inputs.
        Raises:
            PromptError: a text holds a reserved token (see `tango.prepare`), or a part has no medium.
            VideoReadError: a video or an image cannot be read.
            OptionError: this kind of output does not exist here.

        Example:
            >>> parts = [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What happens?"}]
            >>> messages = [{"role": "user", "content": parts}]
            >>> inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        """
        if options.pop("return_assistant_tokens_mask", False) or options.pop("load_audio_from_video", False):
            raise OptionError("no masks of the assistant's tokens and no sound here; use AutoProcessor for them")
        if return_tensors not in ("pt", "auto", None):
            raise OptionError(f"return_tensors must be 'pt', got {return_tensors!r}")
        reading = {name: options.pop(name) for name in (*_OF_READING, *_OF_THE_CALL) if name in options}
        reading |= processor_kwargs or {}
        options.pop("sanitize_control_tokens", None)  # reserved tokens are always an error here
        render = partial(self._render, chat_template=chat_template, add_generation_prompt=add_generation_prompt)
        is_batch = len(conversation) > 0 and (
            isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")
        )
        batch = [read_turns(getattr(c, "messages", c)) for c in (conversation if is_batch else [conversation])]
        if not tokenize:
            prompts = [render(turns, **options) for turns in batch]
            return prompts if is_batch else prompts[0]
        reader = Reading(self, **{name: reading.pop(name) for name in _OF_READING if name in reading})
        batch = [reader.read(turns) for turns in batch]
        images = [media(turns, "image") for turns in batch]
        inputs = self(
            text=[render(turns, **options) for turns in batch],
            videos=[video for turns in batch for video in media(turns, "video")] or None,
            images=images if any(images) else None,
            **{"video_timestamps": False, **reading},
        )
        return inputs if return_dict else inputs["input_ids"]

    def prepare_turns(
        self, messages: Iterable[Mapping[str, Any]], reading: Reading, *, prefill: str = "", **options: Any
    ) -> BatchFeature:
        """Make the inputs of one conversation, which the model is to continue after `prefill`."""
        turns = reading.read(read_turns(messages))
        check_texts([], self._reserved(), prefill=prefill)
        videos, images = media(turns, "video"), media(turns, "image")
        text = self._render(turns, add_generation_prompt=True) + prefill
        return self(text=text, videos=videos or None, images=[images] if images else None, **options)

    def _render(self, turns: Sequence[Turn], *, chat_template: str | None = None, **options: Any) -> str:
        check_texts(turns, self._reserved())
        template = chat_template or self.chat_template
        return self.tokenizer.apply_chat_template(
            without_media(turns), chat_template=template, tokenize=False, **options
        )

    def begun(self, text: str | Sequence[str]) -> dict[str, bool]:
        """The option by which the tokenizer adds no BOS token to prompts that begin with one, as templates write it."""
        bos, texts = self.tokenizer.bos_token, [text] if isinstance(text, str) else text
        return {"add_special_tokens": False} if bos and all(t.startswith(bos) for t in texts) else {}

    def _reserved(self) -> set[str]:
        return reserved_tokens(self.tokenizer, (self.video_token, self.image_token))

    def decode(self, *args: Any, **options: Any) -> str:
        """Turn one sequence of ids into text."""
        return self.tokenizer.decode(*args, **options)

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """Turn a batch of ids into texts."""
        return self.tokenizer.batch_decode(*args, **options)

    def post_process_image_text_to_text(
        self, generated_outputs: Tensor | Iterable[Any], skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """Turn the ids that `generate` returned, one sequence or a batch, into texts."""
        rows = generated_outputs if isinstance(generated_outputs, Tensor) else list(generated_outputs)
        if len(rows) and (rows.dim() == 1 if isinstance(rows, Tensor) else isinstance(rows[0], int)):
            rows = [rows]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=skip_special_tokens, **options)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` returns."""
        return [*dict.fromkeys([*self.tokenizer.model_input_names, *self.media_input_names])]

    @property
    def pad_token_id(self) -> int | None:
        """The id that pads rows."""
        return self.tokenizer.pad_token_id

    def stock(self) -> ProcessorMixin:
        """Return the stock processor that stands for this one in a saved checkpoint."""
        raise MissingPartError("this processor has no counterpart in transformers; save its tokenizer")

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> list[str]:
        """Write the files that `AutoProcessor.from_pretrained` and `tango.load` read, beside a saved model.

        Raises:
            OptionError: `push_to_hub` is set.
        """
        if push_to_hub:
            raise OptionError("a processor is saved to a folder; upload that with huggingface_hub")
        try:
            return list(self.stock().save_pretrained(save_directory, **options) or [])
        except (ImportError, MissingPartError) as error:
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"only the tokenizer is saved, without it AutoProcessor cannot load: {reason}", stacklevel=2)
            return list(self.tokenizer.save_pretrained(save_directory))

    @classmethod
    def from_pretrained(cls, *_args: object, **_options: object) -> ChatProtocol:
        """Refuse: `tango.load` makes the processor that belongs to a model.

        Raises:
            MissingPartError: always.
        """
        raise MissingPartError("use model, processor = tango.load(folder), or transformers' AutoProcessor")


_OF_READING = ("num_frames", "fps", "backend", "time_instruction")


class Reading:
    """Reads the media of conversations for one processor; the arguments are those of `tango.prepare`."""

    def __init__(
        self,
        processor: ChatProtocol,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        backend: str = "auto",
        time_instruction: TimeInstruction | None = None,
    ):
        usual = int(getattr(processor, "default_num_frames", 32))
        self.read_video = partial(load_video, num_frames=num_frames, usual=usual, backend=backend, fps=fps)
        self._kind: TimeInstruction = time_instruction or getattr(processor, "time_instruction", None) or "none"
        self._asked = time_instruction is not None

    def read(self, turns: Sequence[Turn]) -> list[Turn]:
        """Load the media of the turns, and describe the times of videos in their text."""
        turns = load_media(turns, video=self.read_video, image=read_image)
        return tell_times(turns, self._kind, asked=self._asked)


class WrappedProcessor(ChatProtocol):
    """A stock processor of transformers that takes videos in any form, and adds the times of their frames.

    Args:
        stock: for example from `AutoProcessor.from_pretrained`.
    """

    def __init__(self, stock: ProcessorMixin):
        self._stock = stock
        self.tokenizer, self.chat_template = stock.tokenizer, getattr(stock, "chat_template", None)
        self.video_token = getattr(stock, "video_token", "<video>")
        self.image_token = getattr(stock, "image_token", None)
        self.default_num_frames = int(getattr(stock, "default_num_frames", 32))
        self.time_instruction = getattr(stock, "time_instruction", "none")
        self.media_input_names = stock.model_input_names

    def __call__(
        self,
        text: str | Sequence[str],
        videos: Sequence[Video | Tensor] | None = None,
        images: object = None,
        *,
        video_timestamps: bool = True,
        video_pixels: bool = True,
        **options: Any,
    ) -> BatchFeature:
        """Call the stock processor with videos that are `Video`s or frames (T, h, w, 3).

        It makes pixels also where they are to be left out.
        """
        options = {"return_tensors": "pt", "do_sample_frames": False, **self.begun(text), **options}
        if isinstance(text, list) and len(text) > 1:
            options.setdefault("padding", True)
        given = list(videos or [])
        timed = [video for video in given if isinstance(video, Video)]
        if all_timed := bool(given) and len(timed) == len(given):
            options["video_metadata"] = [_metadata(video) for video in timed]
        frames = [(video.frames if isinstance(video, Video) else video).permute(0, 3, 1, 2) for video in given]
        inputs = self._stock(text=text, videos=frames or None, images=images, **options)
        if all_timed and video_timestamps:
            inputs["video_timestamps_s"] = [video.timestamps_s for video in timed]
        if not video_pixels:
            inputs.pop("pixel_values_videos", None)
        return inputs

    def _render(self, turns: Sequence[Turn], *, chat_template: str | None = None, **options: Any) -> str:
        check_texts(turns, self._reserved())
        named = {} if chat_template is None else {"chat_template": chat_template}
        return self._stock.apply_chat_template(without_media(turns), tokenize=False, **named, **options)

    def stock(self) -> ProcessorMixin:
        return self._stock


def _metadata(video: Video) -> VideoMetadata:
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(
        total_num_frames=video.num_source_frames,
        fps=video.fps,
        duration=video.duration_s,
        frames_indices=list(video.frame_indices),
    )
