"""`answer`: one question about one video, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tango.errors import OptionError
from tango.methods import KeepAllPruner
from tango.models.base import own_inputs, stock_is_right
from tango.models.placement import device_of
from tango.models.processors.messages import TimeInstruction
from tango.models.processors.protocol import ChatProtocol, Reading, WrappedProcessor
from tango.models.processors.qwen import VisionMarks, check_marks
from tango.runtime.encoded_video import EncodedVideo
from tango.runtime.pruning import prune, pruning_of

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin


def prepare(
    processor: ChatProtocol | ProcessorMixin,
    video: object,
    question: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    num_frames: int | None = None,
    backend: str = "auto",
    fps: float | None = None,
    time_instruction: TimeInstruction | None = None,
    vision_marks: VisionMarks | None = None,
) -> BatchFeature:
    """Make the inputs of `model.generate` from one video and one question.

    The processor is that of `tango.load`, or a stock one of transformers.

    Args:
        video: a `Video`, or anything that `tango.read_video` takes. Frames in memory and lists have no timestamps. Or
            an `EncodedVideo`, which was read as `tango.encode` was told to, and then stands among the inputs in place
            of the pixels.
        question: what to ask. It may not contain tokens that mean something to the model (`<|im_end|>`, `<image>`).
        history: earlier questions about the video, each with its answer, if this is a follow-up question.
        num_frames: how many frames to sample. None: from a file or a folder, the model's usual number (32 for
            LLaVA-OneVision, 64 for LLaVA-Video); from frames in memory or a list, all. A `Video` is taken as it is.
        fps: frames per second of a folder (None: 3), of a list or of frames in memory; it gives them timestamps.
        time_instruction: what stands before the question. "frames" says how long the video is and when its frames are
            shown; "release" does the same, but repeats a slip of the paper's release, which gives the frames' height as
            their number; "none" adds nothing. None: as the model was trained, which is "frames" for LLaVA-Video (if
            `video` has timestamps) and "none" for the others.
        vision_marks: how Qwen3-VL's prompt marks frames. "nested": as in transformers; "flat": without the pair of
            marks around the whole video. None: the processor's own setting, "nested" unless it was changed.
    Returns:
        `input_ids`, `attention_mask`, `pixel_values_videos` and, where known, `video_timestamps_s`, with
        `video_first_equal` beside it.
    Raises:
        VideoReadError: the video cannot be read.
        UnknownNameError: no such time instruction or way of marking.
        PromptError: the question contains a reserved token, or a time instruction is asked for and the video has no
            timestamps.
        OptionError: an option that this model or this video does not have, or a history of another form.
    Example:
        >>> inputs = tango.prepare(processor, "clip.mp4", "what color is plain", num_frames=8)
        >>> inputs["pixel_values_videos"].shape
        torch.Size([1, 8, 3, 112, 112])
    """
    reading: dict[str, Any] = {"num_frames": num_frames, "backend": backend, "fps": fps}
    reading |= {"time_instruction": time_instruction, "vision_marks": vision_marks}
    if not isinstance(video, EncodedVideo):
        return prepare_chat(processor, _turns(video, question, history), **reading)
    if given := [name for name, value in reading.items() if value not in (None, "auto")]:
        raise OptionError(f"this video was read when it was encoded; give {', '.join(given)} to tango.encode instead")
    outline, options = video.outline, {"video_pixels": False}
    turns, marks, told = _turns(outline.video, question, history), outline.vision_marks, outline.time_instruction
    inputs = _prepare(processor, turns, vision_marks=marks, options=options, time_instruction=told)
    inputs[video.video_input] = video
    return inputs


def _turns(video: object, question: str, history: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A conversation about one video, which ends with a question."""
    pairs = [tuple(turn) if isinstance(turn, (tuple, list)) else () for turn in history]
    if not all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs):
        raise OptionError(f"history must hold pairs of texts, [(question, answer), ...], got {history!r:.200}")
    texts = [*(text for pair in pairs for text in pair), question]
    parts: list[list[dict[str, object]]] = [[{"type": "text", "text": text}] for text in texts]
    parts[0].insert(0, {"type": "video", "video": video})
    return [{"role": role, "content": part} for role, part in zip(cycle(("user", "assistant")), parts, strict=False)]


def prepare_chat(
    processor: ChatProtocol | ProcessorMixin,
    messages: Sequence[Mapping[str, object]],
    *,
    prefill: str = "",
    num_frames: int | None = None,
    backend: str = "auto",
    fps: float | None = None,
    time_instruction: TimeInstruction | None = None,
    vision_marks: VisionMarks | None = None,
) -> BatchFeature:
    """Make the inputs of `model.generate` from a conversation: `prepare` for any number of videos and turns.

    Args:
        messages: as for a chat template. Parts of type "video" hold a video in any form under "video" (or "path",
            "url"), parts of type "image" an image.
        prefill: the first words of the answer, which the model continues.
    """
    reading = {"num_frames": num_frames, "backend": backend, "fps": fps, "time_instruction": time_instruction}
    return _prepare(processor, messages, vision_marks=vision_marks, options={"prefill": prefill}, **reading)


def _prepare(
    processor: ChatProtocol | ProcessorMixin,
    messages: Sequence[Mapping[str, object]],
    *,
    vision_marks: VisionMarks | None,
    options: Mapping[str, Any],
    **reading: Any,
) -> BatchFeature:
    processor = wrapped(processor)
    marks = _marks(processor, vision_marks)
    return processor.prepare_turns(messages, Reading(processor, **reading), **marks, **options)


def wrapped(processor: ChatProtocol | ProcessorMixin) -> ChatProtocol:
    """The processor in the form that Tango uses."""
    return processor if isinstance(processor, ChatProtocol) else WrappedProcessor(processor)


def _marks(processor: object, vision_marks: VisionMarks | None) -> dict[str, VisionMarks]:
    if vision_marks is None:
        return {}
    check_marks(vision_marks)
    if not hasattr(processor, "vision_marks"):
        raise OptionError(
            f"vision_marks={vision_marks!r} is for Qwen3-VL with the processor of tango.load; leave it out"
        )
    return {"vision_marks": vision_marks}


def answer(
    model: PreTrainedModel,
    processor: ChatProtocol | ProcessorMixin,
    video: object,
    question: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    num_frames: int | None = None,
    max_new_tokens: int = 128,
    backend: str = "auto",
    fps: float | None = None,
    time_instruction: TimeInstruction | None = None,
    vision_marks: VisionMarks | None = None,
    **generate_options: Any,
) -> str:
    """Ask a question about a video; greedy decoding unless `generate_options` say otherwise.

    With `tango.prune` active the video is pruned. Otherwise this is stock generation with all tokens; for LLaVA-Video,
    which stock code gets wrong, it is Tango's own generation with all tokens kept. All other arguments, and the
    errors, are those of `tango.prepare`.

    An `EncodedVideo` is refused, as a `TangoError` that says what differs, by another model and where the model's plan,
    weights, dtype or device are no longer those of `tango.encode`.

    Example:
        >>> tango.answer(model, processor, "clip.mp4", "what color is plain")
        'cyan'
        >>> tango.answer(model, processor, "clip.mp4", "how many objects", history=[("what color is plain", "cyan")])
        '...'
    """
    inputs = prepare(
        processor,
        video,
        question,
        history=history,
        num_frames=num_frames,
        backend=backend,
        fps=fps,
        time_instruction=time_instruction,
        vision_marks=vision_marks,
    )
    return generate_text(model, processor, inputs, max_new_tokens=max_new_tokens, **generate_options)


def generate_text(
    model: PreTrainedModel, processor: ChatProtocol | ProcessorMixin, inputs: BatchFeature, **generate_options: Any
) -> str:
    """Generate from prepared inputs of one prompt and decode the new tokens."""
    new = generate_ids(model, inputs, **generate_options)
    return processor.decode(new[0], skip_special_tokens=True).strip()


def generate_ids(model: PreTrainedModel, inputs: BatchFeature, **generate_options: Any) -> Tensor:
    """Generate from prepared inputs; return every prompt's new tokens (B, n), padded where its answer ended early."""
    output = generate_output(model, inputs, **generate_options)
    sequences = output if isinstance(output, Tensor) else output.sequences
    return sequences[:, inputs["input_ids"].shape[1] :]


def generate_output(model: PreTrainedModel, inputs: BatchFeature, **generate_options: Any) -> Any:
    """Return what `model.generate` returns for prepared inputs; greedy unless the options say otherwise."""
    scope: AbstractContextManager[object] = nullcontext()
    encoded = any(isinstance(value, EncodedVideo) for value in inputs.values())
    if pruning_of(model) is None and stock_is_right(model) and not encoded:
        inputs = inputs.to(device_of(model))
        for name in own_inputs(model):  # stock generate refuses inputs it does not know
            inputs.pop(name, None)
    elif pruning_of(model) is None:
        scope = prune(model, KeepAllPruner())
    with scope, torch.inference_mode():
        return model.generate(**inputs, **{"do_sample": False, **generate_options})
