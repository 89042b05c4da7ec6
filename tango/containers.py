"""The values that travel through Tango: a video, its visual tokens, and what pruning leaves of them."""

from __future__ import annotations

import enum
import functools
import operator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tango.annotations import Float, Int, UInt8


class Signal(enum.Flag):
    """What a method needs to know about the tokens besides features, grid and timestamps.

    To add a signal: a member here, its `SignalKind` in `_KINDS` below, and a field of `VisualTokens`.

    Example:
        >>> (Signal.SALIENCY | Signal.KEYS).fields
        ['saliency', 'keys']
    """

    NONE = 0
    SALIENCY = enum.auto()
    FRAME_EMBEDS = enum.auto()
    TIMESTAMPS = enum.auto()  # in seconds; where the input has none, frame numbers stand in, with a warning
    KEYS = enum.auto()
    TEXT = enum.auto()  # of the question: what a method keeps then holds for this question alone

    @property
    def kinds(self) -> list[SignalKind]:
        """The kind of every signal in this one, in order."""
        return [kind for signal, kind in _KINDS.items() if signal in self]

    @property
    def fields(self) -> list[str]:
        """Fields of `VisualTokens` that hold the signals in this one."""
        return [kind.field for kind in self.kinds]


class SignalKind(NamedTuple):
    """One signal: its name, the field of `VisualTokens` that holds it, the field's shape, and what messages call it."""

    name: str
    field: str
    shape: tuple[str, ...]  # T, N and D are those of the features
    words: str


_KINDS = {
    Signal.SALIENCY: SignalKind("saliency", "saliency", ("T", "N"), "saliency"),
    Signal.FRAME_EMBEDS: SignalKind("frame_embeds", "frame_embeds", ("T", "P"), "frame embeddings"),
    Signal.TIMESTAMPS: SignalKind("timestamps", "timestamps_s", ("T",), "timestamps"),
    Signal.KEYS: SignalKind("keys", "keys", ("T", "N", "d"), "the vision tower's attention keys"),
    Signal.TEXT: SignalKind("text", "text", ("Q", "D"), "the text of the question"),
}
ALL_SIGNALS = functools.reduce(operator.or_, _KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """Where a method comes from. `licence` is that of the authors' own code, which Tango does not contain.

    Example:
        >>> tango.Paper(title="My method", venue="CVPR 2027", url="https://example.org").venue
        'CVPR 2027'
    """

    title: str
    venue: str
    url: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Video:
    """Frames sampled from one file.

    `timestamps_s` are the presentation times of the sampled frames, in seconds from the first displayed frame;
    `frame_indices` are their numbers in display order; `fps` is the file's average frame rate.

    Example:
        >>> video = tango.read_video("clip.mp4", num_frames=4)
        >>> isinstance(video, tango.Video), tuple(video.frames.shape), video.frame_indices
        (True, (4, 112, 112, 3), (0, 15, 30, 45))
    """

    frames: UInt8[Tensor, "T h w 3"]
    timestamps_s: Float[Tensor, "T"]
    frame_indices: tuple[int, ...]
    num_source_frames: int
    duration_s: float
    fps: float
    path: str
    backend: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisualTokens:
    """Everything a method may look at for one video, after projection and pooling.

    Raises:
        ValueError: the shapes do not fit together, or a sink position lies outside the grid.
    Example:
        >>> x = torch.randn(8, 36, 48)
        >>> tokens = tango.VisualTokens(features=x, grid=(6, 6), timestamps_s=torch.arange(8.0))
        >>> len(tango.build_pruner("uniform", retention_ratio=0.25).prune(tokens).indices)
        72
    """

    features: Float[Tensor, "T N D"]
    grid: tuple[int, int]  # (H, W), row-major
    timestamps_s: Float[Tensor, "T"]  # seconds from file start, one per token frame
    saliency: Float[Tensor, "T N"] | None = None  # attention received, fp32, >= 0
    frame_embeds: Float[Tensor, "T P"] | None = None  # one vector per frame
    keys: Float[Tensor, "T N d"] | None = None  # the vision tower's attention keys, averaged over heads
    text: Float[Tensor, "Q D"] | None = None  # the LLM's input embeddings of the question's text
    sink_positions: tuple[int, ...] = ()  # positions in [0, N) that attract attention on this model
    groups: tuple[int, ...] = ()  # lengths of runs of similar frames, where a tower method tells

    def __post_init__(self) -> None:
        if self.features.dim() != 3 or not self.features.is_floating_point():
            raise ValueError(
                f"features must be a floating-point (T, N, D) tensor, got {self.features.dtype} "
                f"of shape {tuple(self.features.shape)}"
            )
        T, N, D = self.features.shape
        H, W = self.grid
        if T == 0 or N == 0 or H * W != N:
            raise ValueError(
                f"features of shape {tuple(self.features.shape)} need a (H, W) grid of {N}, got {self.grid}"
            )
        known = {"T": T, "N": N, "D": D}
        for kind in ALL_SIGNALS.kinds:
            value = getattr(self, kind.field)
            if value is None:
                continue
            shape = tuple(known.get(letter) for letter in kind.shape)
            fits = value.dim() == len(shape) and all(
                size == wanted or (wanted is None and size > 0) for size, wanted in zip(value.shape, shape, strict=True)
            )
            if not fits:
                raise ValueError(
                    f"{kind.field} must have shape {shape} beside features {(T, N)}, got {tuple(value.shape)}"
                )
        if self.groups and sum(self.groups) != T:
            raise ValueError(f"groups must be runs of all {T} frames, got lengths {self.groups}")
        if any(not 0 <= p < N for p in self.sink_positions):
            raise ValueError(f"sink_positions must lie in [0, {N}), got {self.sink_positions}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TowerFrames:
    """The frames of one video that are left after a block of the vision tower, and their states.

    Example:
        >>> frames = tango.TowerFrames(hidden=torch.randn(3, 9, 8), sources=(0, 1, 4))
        >>> len(frames.hidden)
        3
    """

    hidden: Float[Tensor, "T p P"]
    sources: tuple[int, ...]  # the frame of the video that each stands for; increasing
    groups: tuple[int, ...] = ()  # lengths of runs of similar frames, once merging is over


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTokens:
    """Everything a layer pruner may look at: what is left of one prompt at the input of a decoder layer.

    Visual tokens include newlines. Queries and keys are rotated, in float32, and come from the layer that
    `LayerPruner.reads` names; `heads / groups` heads share keys.

    Example:
        >>> def visual_states(prompt: tango.LayerTokens) -> torch.Tensor:
        ...     return prompt.hidden[prompt.visual]
        >>> visual_states(prompt).shape
        torch.Size([54, 16])
    """

    layer: int  # the prompt is at the input of this layer
    hidden: Float[Tensor, "S D"]
    visual: Int[Tensor, "M"]  # rows of the visual tokens, increasing
    text: Int[Tensor, "Q"]  # rows of the text after the video, or of the last token alone if there is none
    queries: Float[Tensor, "Q heads d"]  # of the rows `text`
    keys: Float[Tensor, "S groups d"]
    scale: float  # of queries times keys
    norm_weight: Float[Tensor, "D"]  # of the decoder's final norm
    frames: Int[Tensor, "M"]  # each visual token's frame, counted over all videos of the prompt; non-decreasing
    cells: Int[Tensor, "M"]  # each visual token's position in its frame, newlines included; every video counts anew
    counts: tuple[int, ...]  # visual tokens that ran through each of the layers before this one

    @property
    def num_entered(self) -> int:
        """Visual tokens that entered the LLM."""
        return self.counts[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrunedTokens:
    """What pruning leaves: `features[i]` stands for source token `indices[i]`, merged or not.

    Example:
        >>> x = tokens.features.flatten(0, 1)
        >>> kept = torch.arange(0, len(x), 4)
        >>> tango.PrunedTokens(features=x[kept], indices=kept).features.shape
        torch.Size([72, 48])
    """

    features: Float[Tensor, "K D"]
    indices: Int[Tensor, "K"]  # t * N + n, strictly increasing
    assignment: Int[Tensor, "M"] | None = None  # kept row that absorbed each token, -1 = dropped


def keep_all(tokens: VisualTokens) -> PrunedTokens:
    """Return every token, untouched: a view of the features, not a copy."""
    M = tokens.features.shape[0] * tokens.features.shape[1]
    index = torch.arange(M, device=tokens.features.device)
    return PrunedTokens(features=tokens.features.reshape(M, -1), indices=index, assignment=index)
