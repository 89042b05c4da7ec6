"""Shape annotations that cost nothing when jaxtyping is absent.

Shape legend, the same letters in every module; any other axis has a name of three letters or more:
    T     frames
    H, W  rows and columns of the token grid
    N     tokens per frame: H * W, or those of them that take part
    M     tokens of one set: of a whole video, T * N, or of a part of it
    K     kept tokens
    k     tokens picked from one set
    C     clusters, and their anchors
    R     rows of several sets, one set after another
    B     batch: prompts, frames or sets that are worked on together
    L, S  length of a prompt before and after pruning
    Q     text tokens after the video
    D     width of a token, that of the LLM
    P     width of the vision tower
    d     width of an attention head
    p     patches per frame, before pooling
    h, w  height and width of a frame in pixels
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, UInt8
    except ImportError:  # a bare GPU machine: the annotations then say nothing, the code runs the same

        class _Unchecked:
            def __class_getitem__(cls, item: tuple) -> type:
                return item[0]

        Bool = Float = Int = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Int", "UInt8"]
