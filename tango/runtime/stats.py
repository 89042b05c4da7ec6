"""What a pruned call did, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tango.containers import PrunedTokens
from tango.profiling import StageTimer

if TYPE_CHECKING:
    from tango.models.base import EncodedVideos


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """Intra-LLM pruning: the layers at whose inputs tokens were pruned, and how many visual tokens were kept there.

    `tokens` counts newlines, too, and has one number more than `layers`: its first is what entered the LLM.
    `mean_retention_ratio` is the fraction of all visual tokens that enter a layer, averaged over the LLM's layers.
    """

    method: str
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    mean_retention_ratio: float
    # Of the kept tokens of each prompt: frame, and position in the frame (newlines included), as in `LayerTokens`.
    places: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, object]:
        """Everything but `places` as plain numbers."""
        return {name: getattr(self, name) for name in ("method", "layers", "tokens", "mean_retention_ratio")}

    def __str__(self) -> str:
        where = ", ".join(map(str, self.layers)) if len(self.layers) < 5 else f"{self.layers[0]}-{self.layers[-1]}"
        return f"{' -> '.join(map(str, _ends(self.tokens)))} at layer{'s' * (len(self.layers) > 1)} {where}"


def _ends(tokens: tuple[int, ...]) -> tuple[int, ...]:
    return tokens if len(tokens) < 6 else (tokens[0], tokens[-1])


@dataclass(frozen=True, kw_only=True)
class VideoStats:
    """One video: frames, token grid of a frame, and visual tokens before and after pruning (newlines not counted). An
    image is a video of one frame.

    `frames_encoded` is how many frames came out of the vision tower: fewer than `frames` where equal ones were encoded
    once, or where a tower method merged some. For Qwen-VL, both count temporal steps.
    """

    frames: int
    frames_encoded: int
    grid: tuple[int, int]
    tokens_before: int
    tokens_after: int


def video_stats(encoded: EncodedVideos, pruned: Sequence[PrunedTokens]) -> tuple[VideoStats, ...]:
    """The numbers of every video."""
    sizes = [video.features.shape[:2] for video in encoded.videos]
    through: Sequence[int] = [T for T, _ in sizes] if encoded.reuse is None else encoded.reuse.encoded
    if encoded.merged is not None:
        through = [len(own.sources) for own in encoded.merged]
    return tuple(
        VideoStats(frames=T, frames_encoded=own, grid=video.grid, tokens_before=T * N, tokens_after=len(kept.indices))
        for (T, N), own, video, kept in zip(sizes, through, encoded.videos, pruned, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class PruningStats:
    """What the last call did.

    `entering_before` and `entering_after` count the tokens of `videos` and `images` in the LLM's input, newlines
    included.
    `prompt_before` and `prompt_after` are the lengths of the whole prompts, one per row of the batch.

    Example:
        >>> with tango.prune(model, "uniform", retention_ratio=0.1) as pruning:
        ...     text = tango.answer(model, processor, "clip.mp4", "what color is plain")
        >>> print(pruning.stats)  # a PruningStats
        uniform: 784 -> 78 visual tokens (9.9 %), prompt 790 -> 84 tokens; ms: tower ..., decoding ...
    """

    method: str
    retention_ratio: float
    videos: tuple[VideoStats, ...]
    entering_before: int
    entering_after: int
    prompt_before: tuple[int, ...]
    prompt_after: tuple[int, ...]
    timer: StageTimer = field(repr=False)
    layer: LayerStats | None = None  # None: there was no intra-LLM pruning
    images: tuple[VideoStats, ...] = ()  # of the images that were pruned, too

    @property
    def tokens_before(self) -> int:
        """Visual tokens of all videos before pruning, and of images that are pruned, too."""
        return sum(video.tokens_before for video in (*self.videos, *self.images))

    @property
    def tokens_after(self) -> int:
        """The same after pruning."""
        return sum(video.tokens_after for video in (*self.videos, *self.images))

    @property
    def visual_share(self) -> float:
        """Fraction of visual tokens kept."""
        return self.tokens_after / max(1, self.tokens_before)

    @property
    def entering_share(self) -> float:
        """Fraction of their tokens, newlines included, that enters the LLM."""
        return self.entering_after / max(1, self.entering_before)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, with milliseconds per stage."""
        plain = {k: v for k, v in vars(self).items() if k not in ("timer", "videos", "images", "layer")}
        return {
            **plain,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "visual_share": self.visual_share,
            "entering_share": self.entering_share,
            "videos": [asdict(video) for video in self.videos],
            **({"images": [asdict(image) for image in self.images]} if self.images else {}),
            "layer": None if self.layer is None else self.layer.to_dict(),
            "stages_ms": {stage: round(ms, 3) for stage, ms in self.timer.ms().items()},
        }

    def __str__(self) -> str:
        visual = f"{self.tokens_before} -> {self.tokens_after} visual tokens"
        share = f"{100 * self.visual_share:.1f} %"
        if self.entering_after > self.tokens_after + len(self.videos):  # a newline per row, not one per video
            share += f", with newlines {100 * self.entering_share:.1f} %"
        prompt = f"prompt {sum(self.prompt_before)} -> {sum(self.prompt_after)}"
        if self.layer is not None:
            visual += f", {self.layer}"
            share += f", {100 * self.layer.mean_retention_ratio:.1f} % averaged over the layers"
        given, encoded = (sum(getattr(v, name) for v in self.videos) for name in ("frames", "frames_encoded"))
        frames = f", {encoded} of {given} frames encoded" if encoded < given else ""
        stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in self.timer.ms().items())
        return f"{self.method}: {visual} ({share}), {prompt} tokens{frames}; ms: {stages}"
