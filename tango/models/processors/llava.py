"""Turns a question and videos into model inputs, with the preprocessing that the LLaVA models were trained with.

This is own code, in torch alone: the stock video processors need torchvision, and their class defaults normalise with
CLIP's statistics. Pixels are as in the original code: bicubic resize with antialiasing, mean and deviation 0.5. For a
tower that is not SigLIP's, the checkpoint says which mean and deviation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature

from tango.annotations import Float, UInt8
from tango.containers import Video
from tango.errors import MissingPartError, OptionError, PromptError
from tango.models.processors.messages import TimeInstruction
from tango.models.processors.protocol import ChatProtocol
from tango.ops.device import chunks
from tango.video.images import read_image
from tango.video.reading import load_video
from tango.video.repeats import FIRST_EQUAL, first_equal
from tango.video.sampling import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}VIDEO"
    "{% elif part['type'] == 'image' %}IMAGE{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
)


def turns(form: str, cue: str, *, video: str, image: str) -> str:
    """A chat template: `form` for every turn, with CONTENT for its parts, and the cue for an answer.

    Args:
        video, image: the texts where videos and images stand.
    """
    content = _CONTENT.replace("VIDEO", video).replace("IMAGE", image)
    every = "{% for message in messages %}" + form.replace("CONTENT", content) + "{% endfor %}"
    return every + "{% if add_generation_prompt %}" + cue + "{% endif %}"


def chatml(video: str, image: str, *, system_turn: bool = True) -> str:
    """The ChatML template, with these texts where videos and images stand."""
    form = "<|im_start|>{{ message['role'] }}\nCONTENT<|im_end|>\n"
    return (_SYSTEM if system_turn else "") + turns(form, "<|im_start|>assistant\n", video=video, image=image)


CHATML = chatml("<video>\n", "<image>\n")
Videos = Any  # a video in any form that `tango.read_video` takes, or a list of them; None: no video
Images = object  # an image in any form that `read_image` takes, a list of them, or a list per prompt; None: no image
Statistics = tuple[Sequence[float], Sequence[float]]  # mean and deviation of the three colours
Matched = tuple[list[str], list[Tensor], list[Tensor] | None]


def preprocess_frames(
    frames: UInt8[Tensor, "T h w 3"],
    size: int,
    first: Sequence[int] | None = None,
    statistics: Statistics | None = None,
) -> Float[Tensor, "T 3 size size"]:
    """Resize frames to a square and normalise them; `first` as in `resize_frames`.

    Args:
        statistics: mean and deviation of red, green and blue, in [0, 1]; None: SigLIP's, which give [-1, 1].
    """
    pixels = resize_frames(frames, (size, size), first)
    if statistics is None:
        return pixels.mul_(1 / 127.5).sub_(1)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    return pixels.mul_(1 / 255).sub_(mean).div_(deviation)


def resize_frames(
    frames: UInt8[Tensor, "T h w 3"], size: tuple[int, int], first: Sequence[int] | None = None
) -> Float[Tensor, "T 3 rows columns"]:
    """Resize frames to this height and width, a chunk of frames at a time.

    Args:
        first: what `first_equal` says of the frames; those that it finds repeated are resized once.
    """
    if first is not None and len(distinct := sorted(set(first))) < len(frames):
        row = {frame: row for row, frame in enumerate(distinct)}
        return resize_frames(frames[distinct], size)[[row[f] for f in first]]
    pixels = torch.empty(len(frames), 3, *size)
    for chunk in chunks(len(frames), frames.shape[1:].numel(), frames.device, cpu_bytes=64 << 20):
        pixels[chunk] = F.interpolate(
            frames[chunk].permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True, align_corners=False
        )
    return pixels


def chat_template(folder: Path) -> str | None:
    """Read the template that older processors keep in a file of their own; newer ones store it with the tokenizer."""
    file = folder / "chat_template.json"
    return json.loads(file.read_text(encoding="utf-8"))["chat_template"] if file.is_file() else None


class ChatProcessor(ChatProtocol):
    """The base of Tango's own processors: a tokenizer, a chat template, and placeholders for media.

    Prompts are padded on the left. The attribute `time_instruction` says what `tango.prepare` tells the model about a
    video's time (see `describe_time`).
    """

    image_token: str

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        video_token: str,
        image_token: str,
        chat_template: str,
        default_num_frames: int,
    ):
        self.tokenizer, self.video_token, self.image_token = tokenizer, video_token, image_token
        self.chat_template, self.default_num_frames = chat_template, default_num_frames
        self.time_instruction: TimeInstruction = "none"
        self.tokenizer.padding_side = "left"

    def stock(self) -> ProcessorMixin:
        """Make the stock processor of the family, with the same tokenizer and sizes; it processes images.

        Raises:
            MissingPartError: there is no stock processor, or torchvision, which it needs, is not installed.
        """
        try:
            stock = self._build_stock()
        except ImportError as error:
            raise MissingPartError(f"transformers' processors need torchvision ({one_line(error)})") from error
        stock.chat_template = self.chat_template
        return stock

    def _build_stock(self) -> ProcessorMixin:
        raise MissingPartError("this processor knows none of transformers; make it with tango.load")

    def match(self, text: object, videos: Videos, num_frames: int | None = None) -> Matched:
        """Read the videos; return prompts, frames of every video, and the times of all frames if all videos have times.

        Args:
            num_frames: as in `tango.prepare`.
        Raises:
            PromptError: the numbers of placeholders and of videos differ, or `text` holds no prompts.
            VideoReadError: a video cannot be read.
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
            raise PromptError(
                f"the text must be a prompt or a list of prompts, got {type(text).__name__}; "
                "name the arguments: processor(text=..., videos=..., images=...)"
            )
        given = several(videos)
        self._count(texts, self.video_token, len(given), "videos")
        read = [load_video(video, num_frames=num_frames, usual=self.default_num_frames) for video in given]
        frames = [video.frames if isinstance(video, Video) else video for video in read]
        times = [video.timestamps_s for video in read if isinstance(video, Video)]
        return list(texts), frames, times if given and len(times) == len(given) else None

    def image_inputs(self, texts: Sequence[str], images: Images) -> tuple[list[str], dict[str, Tensor]]:
        """Let the stock processor make the inputs for images, and the text that replaces each image's placeholder.

        Raises:
            PromptError: the numbers of placeholders and of images differ.
            MissingPartError: there is no stock processor; see `stock`.
        """
        flat = [] if images is None else list(flat_images(images))
        self._count(texts, self.image_token, len(flat), "images")
        if not flat:
            return [], {}
        stock, remaining = self.stock(), iter([read_image(image) for image in flat])
        rows = [list(islice(remaining, text.count(self.image_token))) for text in texts]
        inputs = stock.image_processor([row for row in rows if row], return_tensors="pt")
        return [self._image_piece(stock, inputs, i) for i in range(len(flat))], dict(inputs)

    def _image_piece(self, stock: ProcessorMixin, inputs: dict[str, Any], number: int) -> str:
        """The text that replaces an image's placeholder."""
        return stock.replace_image_token(inputs, number)

    def tokenize(self, texts: list[str], pieces: dict[str, list[str]], options: dict[str, Any]) -> BatchFeature:
        """Replace the token of every video and image by its piece of text, and tokenize.

        Args:
            pieces: token -> the texts that replace its occurrences, in order.
        """
        for token, values in pieces.items():
            remaining = iter(values)
            texts = ["".join(self._filled(text, token, remaining)) for text in texts] if values else texts
        options = {"padding": True, **self.begun(texts), **options, "return_tensors": "pt"}
        return BatchFeature(dict(self.tokenizer(texts, **options)))

    @staticmethod
    def _filled(text: str, token: str, remaining: Iterator[str]) -> Iterator[str]:
        first, *rest = text.split(token)
        yield first
        for piece in rest:
            yield next(remaining) + piece

    @staticmethod
    def _count(texts: Sequence[str], token: str | None, given: int, what: str) -> None:
        count = sum(text.count(token) for text in texts) if token else 0
        if count != given:
            raise PromptError(f"the prompt has {count} {token}, but {given} {what} are given; each needs the other")


def several(videos: Videos) -> list[Any]:
    """The videos as a list; None is none, and anything but a list of videos is one."""
    return [] if videos is None else list(videos) if _are_several(videos) else [videos]


def _are_several(videos: Videos) -> bool:
    """Whether this is a list of videos; a list of images or of single frames is one video."""
    if not isinstance(videos, (list, tuple)):
        return False
    return not videos or not all(_is_frame(item) for item in videos)


def _is_frame(item: object) -> bool:
    return hasattr(item, "convert") or len(getattr(item, "shape", ())) == 3


def flat_images(images: Images) -> Iterator[object]:
    """All images, in order."""
    if not isinstance(images, (list, tuple)):
        yield images
        return
    for image in images:
        yield from flat_images(image)


class Processor(ChatProcessor):
    """LLaVA's tokenizer and video preprocessing in one callable, used like a transformers processor.

    `processor(text=..., videos=...)` returns `input_ids`, `attention_mask`, `pixel_values_videos` and
    `video_timestamps_s`, from which pruning methods know real time; beside it stands `video_first_equal`, which tells
    equal frames (see `tango.models.reuse`).

    Args:
        num_video_tokens: frames -> placeholders that a video takes in an unpruned prompt.
        statistics: as in `preprocess_frames`.
        make_stock: tokenizer -> the stock processor, which processes images and is saved in checkpoints.

    Example:
        >>> inputs = processor(text="<video>What happens?", videos="clip.mp4", num_frames=4)
        >>> len(inputs["video_timestamps_s"][0])
        4
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        image_size: int,
        num_video_tokens: Callable[[int], int],
        default_num_frames: int,
        chat_template: str | None = None,
        statistics: Statistics | None = None,
        make_stock: Callable[[PreTrainedTokenizerBase], ProcessorMixin] | None = None,
    ):
        template = chat_template or getattr(tokenizer, "chat_template", None) or CHATML
        super().__init__(
            tokenizer,
            video_token="<video>",
            image_token="<image>",
            chat_template=template,
            default_num_frames=default_num_frames,
        )
        self.image_size, self.num_video_tokens, self.statistics = image_size, num_video_tokens, statistics
        self._make_stock = make_stock

    media_input_names = (
        "pixel_values_videos", "video_timestamps_s", FIRST_EQUAL, "pixel_values", "image_sizes", "batch_num_images",
    )  # fmt: skip

    def _build_stock(self) -> ProcessorMixin:
        return super()._build_stock() if self._make_stock is None else self._make_stock(self.tokenizer)

    def __call__(
        self,
        text: str | Sequence[str],
        videos: Videos = None,
        images: Images = None,
        *,
        num_frames: int | None = None,
        video_timestamps: bool = True,
        video_pixels: bool = True,
        **options: Any,
    ) -> BatchFeature:
        """Tokenize prompts that contain one `<video>` per video, and preprocess the videos in that order.

        A video has any form that `tango.read_video` takes; images stand in the prompts as `<image>`. `options` are the
        tokenizer's.

        Args:
            video_pixels: False: everything but `pixel_values_videos`, from the videos' sizes and times alone.
        Raises:
            PromptError: the numbers of `<video>` and of videos, or of `<image>` and of images, differ.
            VideoReadError: one of them cannot be read.
        """
        check_options(options)
        texts, frames, times = self.match(text, videos, num_frames)
        pieces, extra = self.image_inputs(texts, images)
        placeholders = [self.video_token * self.num_video_tokens(len(f)) for f in frames]
        inputs = self.tokenize(texts, {self.image_token: pieces, self.video_token: placeholders}, options)
        inputs.update(extra)
        if frames and video_pixels:
            first = [first_equal(f) for f in frames]
            pixels = [
                preprocess_frames(f, self.image_size, own, self.statistics)
                for f, own in zip(frames, first, strict=True)
            ]
            same = len({len(p) for p in pixels}) == 1
            inputs["pixel_values_videos"] = torch.stack(pixels) if same else pixels
            if times is not None and video_timestamps:
                inputs[FIRST_EQUAL] = first
        if times is not None and video_timestamps:
            inputs["video_timestamps_s"] = times
        return inputs


def check_options(options: dict[str, Any]) -> None:
    """Drop options of stock processors that change nothing here; refuse those that would be ignored.

    Raises:
        OptionError: the options ask for sound, or for tensors of another kind.
    """
    if options.pop("audio", None) is not None:
        raise OptionError("no sound here; leave out audio, or make the inputs with AutoProcessor if the model hears")
    kind = options.pop("return_tensors", "pt")
    if kind not in ("pt", None):
        raise OptionError(f"return_tensors must be 'pt', got {kind!r}")
