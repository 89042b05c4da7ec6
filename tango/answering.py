"""`answer`: one question about one video, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tango.containers import Video
from tango.pruning import pruning_of
from tango.video import read_video


def prepare(
    processor: Any,
    video: str | Path | Video | Tensor,
    question: str,
    *,
    num_frames: int | None = None,
    backend: str = "auto",
) -> Any:
    """Make the inputs for `model.generate` from one video and one question.

    Works with the processor of `tango.load` and with a stock transformers processor.

    Args:
        video: a file, a `Video`, or frames (T, h, w, 3) in uint8 (then without timestamps).
        num_frames: frames to sample; None: the model's usual number (32 for LLaVA-OneVision).
    Returns:
        `input_ids`, `attention_mask`, `pixel_values_videos` and, where known, `video_timestamps_s`.
    Raises:
        VideoReadError: the file cannot be read.
    """
    if isinstance(video, (str, Path)):
        if num_frames is None:
            num_frames = int(getattr(processor, "default_num_frames", 32))
        video = read_video(video, num_frames=num_frames, backend=backend)
    content = [{"type": "video"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    if hasattr(processor, "num_video_tokens"):
        return processor(text=prompt, videos=video)
    frames = video.frames if isinstance(video, Video) else video
    inputs = processor(text=prompt, videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt", do_sample_frames=False)
    if isinstance(video, Video):
        inputs["video_timestamps_s"] = [video.timestamps_s]
    return inputs


def answer(
    model: Any,
    processor: Any,
    video: str | Path | Video | Tensor,
    question: str,
    *,
    num_frames: int | None = None,
    max_new_tokens: int = 128,
    backend: str = "auto",
    **generate_options: Any,
) -> str:
    """Ask a question about a video; greedy decoding unless `generate_options` say otherwise.

    With `tango.prune` active the video is pruned; without, this is stock generation.

    Raises:
        VideoReadError: the file cannot be read.
    """
    inputs = prepare(processor, video, question, num_frames=num_frames, backend=backend)
    return generate_text(model, processor, inputs, max_new_tokens=max_new_tokens, **generate_options)


def generate_text(model: Any, processor: Any, inputs: Any, **generate_options: Any) -> str:
    """Generate from prepared inputs and decode the new tokens."""
    inputs = dict(inputs.to(model.device))
    if pruning_of(model) is None:
        inputs.pop("video_timestamps_s", None)  # stock generate refuses inputs it does not know
    options = {"do_sample": False, **generate_options}
    with torch.inference_mode():
        sequences = model.generate(**inputs, **options)
    return processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
