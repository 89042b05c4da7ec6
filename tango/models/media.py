"""Says which frames are a video's, for families whose images and videos share one input of the model."""

from __future__ import annotations

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
