"""`answer`: one question about one video, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tango.containers import Video
from tango.models.base import stock_is_right
from tango.models.processor import TimeInstruction, describe_time
from tango.pruning import prune, pruning_of
from tango.video import read_video


def prepare(
    processor: Any,
    video: str | Path | Video | Tensor,
    question: str,
    *,
    num_frames: int | None = None,
    backend: str = "auto",
    time_instruction: TimeInstruction | None = None,
) -> Any:
    """Make the inputs for `model.generate` from one video and one question.

    Works with the processor of `tango.load` and with a stock transformers processor.

    Args:
        video: a file, a `Video`, or frames (T, h, w, 3) in uint8 (then without timestamps).
        num_frames: frames to sample; None: the model's usual number (32 for LLaVA-OneVision, 64 for LLaVA-Video).
        time_instruction: what stands before the question: "frames" says how long the video is and when its frames are
            shown; "release" the same with a slip of the paper's release, the frames' height as their number; "none"
            nothing. None: as the model was trained, "frames" for LLaVA-Video (if `video` has timestamps), else "none".
    Returns:
        `input_ids`, `attention_mask`, `pixel_values_videos` and, where known, `video_timestamps_s`.
    Raises:
        VideoReadError: the file cannot be read.
        UnknownNameError: there is no such time instruction.
        ValueError: a time instruction is asked for, but the video has no timestamps.
    """
    if isinstance(video, (str, Path)):
        if num_frames is None:
            num_frames = int(getattr(processor, "default_num_frames", 32))
        video = read_video(video, num_frames=num_frames, backend=backend)
    content = [{"type": "video", "video": video}, {"type": "text", "text": question}]
    return prepare_chat(processor, [{"role": "user", "content": content}], time_instruction=time_instruction)


def prepare_chat(
    processor: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    prefill: str = "",
    time_instruction: TimeInstruction | None = None,
) -> Any:
    """Make the inputs for `model.generate` from a conversation; as `prepare`, for any number of videos and turns.

    Args:
        messages: as for a chat template; parts of type "video" hold under "video" a `Video`, or frames.
        prefill: the first words of the answer, which the model continues.
    """
    kind = time_instruction or getattr(processor, "time_instruction", None) or "none"
    turns = [{**message, "content": _with_times(message["content"], kind, time_instruction)} for message in messages]
    parts = [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]
    videos = [part["video"] for part in parts if part["type"] == "video"]
    prompt = processor.apply_chat_template([_without_videos(turn) for turn in turns], add_generation_prompt=True)
    prompt += prefill
    if hasattr(processor, "num_video_tokens"):
        return processor(text=prompt, videos=videos or None)
    frames = [(video.frames if isinstance(video, Video) else video).permute(0, 3, 1, 2) for video in videos]
    inputs = processor(text=prompt, videos=frames or None, return_tensors="pt", do_sample_frames=False)
    if videos and all(isinstance(video, Video) for video in videos):
        inputs["video_timestamps_s"] = [video.timestamps_s for video in videos]
    return inputs


def _with_times(content: Any, kind: TimeInstruction, asked: TimeInstruction | None) -> Any:
    """Describe the time of every video in front of the text that follows it."""
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    waiting = ""
    for part in content:
        if part["type"] == "video":
            if isinstance(part["video"], Video):
                waiting += describe_time(part["video"], kind)
            elif asked not in (None, "none"):
                raise ValueError(f"time_instruction={asked!r} needs a file or a Video, got frames without timestamps")
        elif part["type"] == "text" and waiting:
            part, waiting = {**part, "text": waiting + part["text"]}, ""
        parts.append(part)
    return [*parts, {"type": "text", "text": waiting}] if waiting else parts


def _without_videos(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn for the chat template, which needs to know where videos stand, not what is in them."""
    if isinstance(turn["content"], str):
        return dict(turn)
    plain = [{"type": "video"} if part["type"] == "video" else part for part in turn["content"]]
    return {**turn, "content": plain}


def answer(
    model: Any,
    processor: Any,
    video: str | Path | Video | Tensor,
    question: str,
    *,
    num_frames: int | None = None,
    max_new_tokens: int = 128,
    backend: str = "auto",
    time_instruction: TimeInstruction | None = None,
    **generate_options: Any,
) -> str:
    """Ask a question about a video; greedy decoding unless `generate_options` say otherwise.

    With `tango.prune` active the video is pruned; without, this is stock generation with all tokens (for LLaVA-Video,
    which stock code gets wrong, Tango's own with all tokens kept).

    Raises:
        VideoReadError: the file cannot be read.
    """
    inputs = prepare(
        processor, video, question, num_frames=num_frames, backend=backend, time_instruction=time_instruction
    )
    return generate_text(model, processor, inputs, max_new_tokens=max_new_tokens, **generate_options)


def generate_text(model: Any, processor: Any, inputs: Any, **generate_options: Any) -> str:
    """Generate from prepared inputs of one prompt and decode the new tokens."""
    new = generate_ids(model, inputs, **generate_options)
    return processor.decode(new[0], skip_special_tokens=True).strip()


def generate_ids(model: Any, inputs: Any, **generate_options: Any) -> Tensor:
    """Generate from prepared inputs; return the new tokens (B, n) of every prompt, padded where it ended early."""
    output = generate_output(model, inputs, **generate_options)
    sequences = output if isinstance(output, Tensor) else output.sequences
    return sequences[:, inputs["input_ids"].shape[1] :]


def generate_output(model: Any, inputs: Any, **generate_options: Any) -> Any:
    """What `model.generate` returns for prepared inputs; greedy unless the options say otherwise."""
    inputs = dict(inputs.to(model.device))
    scope: AbstractContextManager[Any] = nullcontext()
    if pruning_of(model) is None:
        if stock_is_right(model):
            inputs.pop("video_timestamps_s", None)  # stock generate refuses inputs it does not know
        else:
            scope = prune(model, "uniform", retention_ratio=1.0)
    with scope, torch.inference_mode():
        return model.generate(**inputs, **{"do_sample": False, **generate_options})
