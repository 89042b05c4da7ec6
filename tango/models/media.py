"""Says which frames are a video's, for families whose images and videos share one input of the model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tango.models.calls import Inputs

# Input: for each prompt, its media in order, ("video", number of frames) or ("image", number of tiles).
MEDIA = "media"

Media = list[list[tuple[str, int]]]


def media_of(inputs: Inputs) -> Media | None:
    """What the inputs say of their media: `media`, else one video for each list of times; None: nothing.

    Example:
        >>> media_of({"video_timestamps_s": [[0.0, 1.0], [0.0]]})
        [[('video', 2)], [('video', 1)]]
    """
    if inputs.get(MEDIA) is not None:
        return [[(kind, int(count)) for kind, count in row] for row in inputs[MEDIA]]
    times = inputs.get("video_timestamps_s")
    return None if times is None else [[("video", len(own))] for own in times]


def media_in_order(texts: Sequence[str], given: Mapping[str, Sequence[Any]]) -> Iterator[list[Any]]:
    """Of every prompt, what is given for its media, in order.

    Args:
        given: for each token that stands for a medium in the texts, one item per medium.

    Example:
        >>> list(media_in_order(["<video>?", "<image> and <video>?"], {"<image>": "i", "<video>": "ab"}))
        [['a'], ['i', 'b']]
    """
    items = {token: iter(own) for token, own in given.items()}
    for text in texts:
        yield [next(items[token]) for token in re.findall("|".join(map(re.escape, items)), text)]
