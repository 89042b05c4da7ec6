"""`encode`: run tower and pruner once for a video that several questions are asked about."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tango.containers import Signal, Video
from tango.errors import OptionError
from tango.methods import KeepAllPruner, LayerPruner, Pruner
from tango.models.calls import Call, cache_argument
from tango.models.processors.messages import TimeInstruction
from tango.models.processors.protocol import ChatProtocol, Reading
from tango.models.processors.qwen import VisionMarks
from tango.profiling import StageTimer
from tango.runtime.answering import prepare, wrapped
from tango.runtime.encoded_video import EncodedVideo, Origin, Outline, Prefix, empty_cache
from tango.runtime.pruned_videos import prune_videos
from tango.runtime.pruning import Pruning, prune, pruning_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def encode(
    model: PreTrainedModel,
    processor: ChatProtocol | ProcessorMixin,
    video: object,
    *,
    num_frames: int | None = None,
    backend: str = "auto",
    fps: float | None = None,
    time_instruction: TimeInstruction | None = None,
    vision_marks: VisionMarks | None = None,
    prefix_cache: bool = True,
) -> EncodedVideo:
    """Read, encode and prune a video once, to ask any number of questions about it with `tango.answer`.

    The answers are those that `tango.answer` gives for the video itself, but the vision tower and the method do not run
    again. With the prefix cache the LLM does not read the video again, either: only what follows it in the prompt is
    prefilled. Rounding then differs a little, as it does whenever a prompt is read in two pieces.

    On a model that is not pruned all tokens are kept. Most pre-LLM methods look at the video alone, so what they keep
    is right for every question; those that need its text (`cdpruner`) are refused, and so are intra-LLM methods.

    The video is refused once the model's weights have changed, as far as that can be seen: by new parameters, by
    `load_state_dict`, by an optimizer's step, by PEFT's adapters, but not by writing to a parameter's `.data`.

    Args:
        video, num_frames, backend, fps, time_instruction, vision_marks: as in `tango.prepare`. With a stock processor
            of transformers, every question costs the preparing of blank frames, which tells how the prompt is laid out.
        prefix_cache: keep the LLM's keys and values of the prompt up to the video's last token: 2 * layers * KV heads *
            head size numbers per token (56 KiB in 16 bits for Qwen2-7B, so 36 MB for 627 tokens). It is used where the
            new prompt begins with the same ids and `generate` decodes one row into a cache of its usual kind
            (DynamicCache; no sliding windows, linear attention, beams, assisted decoding or `cache_implementation`),
            and left alone elsewhere.
    Raises:
        OptionError: the model is pruned by a method that looks at the question.
        NotFiniteError: the video's features hold NaN or infinity.
        VideoReadError, UnknownNameError, PromptError, OptionError: as in `tango.prepare`.

    Example:
        >>> with tango.prune(model, "uniform", retention_ratio=0.1):
        ...     video = tango.encode(model, processor, "clip.mp4")
        ...     for question in ("what color is plain", "how many objects"):
        ...         print(tango.answer(model, processor, video, question))
        cyan
        ...
    """
    processor, pruning = wrapped(processor), pruning_of(model)
    if pruning is not None:
        _refuse_question_aware(pruning.pruner, pruning.layer_pruner)
    read = Reading(processor, num_frames=num_frames, fps=fps, backend=backend).read_video(video)
    inputs = prepare(processor, read, "", time_instruction=time_instruction, vision_marks=vision_marks)
    outline = Outline(video=_blank(read), time_instruction=time_instruction, vision_marks=vision_marks)
    scope: AbstractContextManager[Pruning] = prune(model, KeepAllPruner()) if pruning is None else nullcontext(pruning)
    with scope as pruning, torch.no_grad():
        ids, given = inputs["input_ids"], dict(inputs)
        encoded = _prune(pruning, given, outline)
        if prefix_cache:
            end = int((ids[0] == pruning.adapter.video_token_id).nonzero()[-1]) + 1  # of the video, on the host
            given |= {encoded.video_input: encoded, "input_ids": ids[:, :end]}
            encoded = replace(encoded, prefix=_prefix(pruning, given))
        return encoded


def _refuse_question_aware(pruner: Pruner, layer_pruner: LayerPruner | None) -> None:
    if layer_pruner is not None:
        method, alternative = f"{layer_pruner.name} prunes inside the LLM, where it", "a pre-LLM method alone"
    elif Signal.TEXT in pruner.wants:
        method, alternative = pruner.name, "a method that needs no text"
    else:
        return
    raise OptionError(
        f"{method} looks at the question, so a video cannot be encoded before the question is known; give the video "
        f"itself with every question, or prune with {alternative}"
    )


def _blank(video: Video | Tensor) -> Video | Tensor:
    """The video with frames of its size that show nothing and take no memory."""
    frames = video.frames if isinstance(video, Video) else video
    blank = torch.zeros((), dtype=torch.uint8).expand(frames.shape)
    return replace(video, frames=blank) if isinstance(video, Video) else blank


def _prune(pruning: Pruning, inputs: dict[str, Any], outline: Outline) -> EncodedVideo:
    videos = prune_videos(pruning.adapter, pruning.pruner, inputs, StageTimer(pruning.adapter.device))
    videos.refuse_unsound()
    return EncodedVideo(
        outline=outline,
        pruned=videos,
        origin=Origin(pruning.adapter, pruning.pruner, pruning.layer_pruner),
        video_input=pruning.adapter.video_input,
    )


def _prefix(pruning: Pruning, inputs: dict[str, Any]) -> Prefix | None:
    """Run the LLM on a prompt that ends with its video; None: its cache does not allow for keeping a beginning."""
    cache = empty_cache(pruning.model)
    if cache is None:
        return None
    adapter, call = pruning.adapter, Call()
    prepared = pruning.encode(inputs["input_ids"], None, inputs, call)
    short = prepared.short
    others = adapter.short_inputs(short) | adapter.beside_embeds(short.text_ids)
    with prepared.scope:
        pruning.model(
            inputs_embeds=short.inputs_embeds,
            attention_mask=short.attention_mask,
            position_ids=short.position_ids,
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(pruning.model): cache},
            **others,
        )
    layers = tuple((layer.keys, layer.values) for layer in cache.layers)
    return Prefix(input_ids=short.input_ids, position_ids=short.position_ids, layers=layers)
