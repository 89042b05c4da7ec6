"""Shape annotations that cost nothing when jaxtyping is absent.

Shape legend, the same letters in every module:
    T frames   N tokens per frame (= H * W)   H, W token grid   M = T * N   D LLM width   P vision width
    p patches per frame   K kept tokens   S segments   B batch of clusterings   R rows of several clusterings
    C clusters   L sequence length
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
