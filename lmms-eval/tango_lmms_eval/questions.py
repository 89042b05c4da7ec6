"""From lmms-eval's requests to questions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tango import OptionError
from tango.evaluation import Question, frames_as_video

# lmms-eval's default for tasks that name no stop. It would cut answers after their first paragraph; its own classes for
# these models ignore it, too.
_UNASKED_STOP = "\n\n"


def media_part(visual: Any) -> dict[str, Any]:
    """One video (a file, or a folder of frames) or image as a part of a message.

    Raises:
        OptionError: it is something else.
    """
    if isinstance(visual, (str, os.PathLike)) or len(getattr(visual, "shape", ())) == 4:  # frames (T, h, w, 3)
        return {"type": "video", "video": visual}
    if hasattr(visual, "convert"):  # a PIL image
        return {"type": "image", "image": visual}
    raise OptionError(f"this model sees video files and images, but the task gives it {type(visual).__name__}")


def simple_messages(context: str, visuals: list[Any] | None) -> list[dict[str, Any]]:
    """One user turn: what there is to see, then the text. Several images are the frames of one video."""
    parts = frames_as_video([media_part(visual) for visual in visuals or []])
    return [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]


def chat_messages(messages: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's own form of a chat (`url` for whatever is shown) as ours; several images are frames of one video.

    Raises:
        OptionError: a part is neither text, video nor image, or a video is to be shown in part only.
    """
    turns = []
    for message in messages:
        content = []
        for part in message["content"]:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            elif part["type"] not in ("video", "image") or part.get("start_time") or part.get("end_time"):
                raise OptionError(f"this model sees whole videos and images, but the task gives it {dict(part)}")
            else:
                content.append({"type": part["type"], part["type"]: part["url"]})
        turns.append({"role": message["role"], "content": frames_as_video(content)})
    return turns


def build(messages: list[dict[str, Any]], generation: Mapping[str, Any], default_max_new_tokens: int) -> Question:
    """A question with the task's generation settings; those that are not about generation have no effect."""
    options: dict[str, Any] = {"num_beams": int(generation.get("num_beams") or 1)}
    temperature = float(generation.get("temperature") or 0.0)
    if temperature > 0:
        options |= {"do_sample": True, "temperature": temperature}
        options |= {name: generation[name] for name in ("top_p", "top_k") if generation.get(name) is not None}
    until = generation.get("until") or []
    until = [until] if isinstance(until, str) else until
    if stops := [stop for stop in until if stop != _UNASKED_STOP]:
        options["until"] = stops
    longest = generation.get("max_new_tokens") or generation.get("max_gen_toks") or default_max_new_tokens
    return Question(messages=messages, max_new_tokens=int(longest), generate_options=options)
