"""Shapes of the published language models, and what a video puts into their prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tango.errors import UnsupportedModelError

Newlines = Literal["none", "video", "row"]  # one at the end of each video, or of each row of a frame


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A language model and what a video puts into its prompt."""

    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128
    tokens_per_step: int  # visual tokens of a frame, or of frames that are encoded together
    frames_per_step: int = 1
    newlines: Newlines = "none"
    default_frames: int = 32

    def num_newlines(self, steps: int, kept: int) -> float:
        """Newlines beside `kept` visual tokens; where rows without any lose theirs, the mean for random positions."""
        if self.newlines != "row":
            return float(self.newlines == "video")
        N, k = self.tokens_per_step, round(kept / steps)
        side = math.isqrt(N)
        return steps * side * (1 - math.comb(N - side, k) / math.comb(N, k))


_QWEN2 = {
    "0.5b": partial(Shape, width=896, mlp_width=4864, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64),
    "7b": partial(Shape, width=3584, mlp_width=18944, num_layers=28, num_heads=28, num_kv_heads=4),
    "72b": partial(Shape, width=8192, mlp_width=29568, num_layers=80, num_heads=64, num_kv_heads=8),
}
_QWEN25 = {
    "3b": partial(Shape, width=2048, mlp_width=11008, num_layers=36, num_heads=16, num_kv_heads=2),
    "7b": _QWEN2["7b"],
    "72b": _QWEN2["72b"],
}
_VIDEO = {"7b": _QWEN2["7b"], "72b": _QWEN2["72b"]}
PUBLISHED_SHAPES = {
    **{f"llava-onevision-{size}": llm(tokens_per_step=196, newlines="video") for size, llm in _QWEN2.items()},
    **{
        f"llava-video-{size}": llm(tokens_per_step=169, newlines="row", default_frames=64)
        for size, llm in _VIDEO.items()
    },
    # frames of 448 x 448
    **{f"qwen2.5-vl-{size}": llm(tokens_per_step=256, frames_per_step=2) for size, llm in _QWEN25.items()},
}


def llm_widths(config: Any) -> dict[str, int]:
    """The arguments of `layer_flops` for the language model of a transformers config.

    Raises:
        UnsupportedModelError: its layers differ in their sizes.
    """
    text = config.get_text_config()
    if vars(text).get("hidden_size_per_layer_input") is not None:
        raise UnsupportedModelError(
            f"FLOPs are counted for layers that are alike, which those of {text.model_type} are not"
        )
    return {
        "width": text.hidden_size,
        "mlp_width": text.intermediate_size,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": text.num_key_value_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
    }
