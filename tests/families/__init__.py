"""Every model family with tiny random weights in its real class, and prompts for it: what the common tests need.

A module here brings `FAMILIES`, or one `FAMILY`. Media are made from their seeds, so a row alone has the media that it
has in a batch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

Inputs = dict[str, Any]


class Video(NamedTuple):
    """A video of so many frames."""

    frames: int
    seed: int


class Picture(NamedTuple):
    """An image."""

    seed: int


Row = tuple[str | Video | Picture, ...]  # one prompt


def for_stock(inputs: Inputs) -> Inputs:
    """The inputs that stock classes know."""
    return {name: x for name, x in inputs.items() if name not in ("video_timestamps_s", "video_first_equal")}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family, as the common tests see it.

    Attributes:
        name: what its adapter is registered under.
        model: makes a model; its argument is a seed.
        inputs: makes what `generate` of a pruned model takes, from rows; padded on the left.
        stock: leaves what stock classes know.
        tokens_per_frame: visual tokens of a frame, or of `frames_per_step` frames that are encoded together.
        options: of `tango.prune`, with which keeping all equals stock.
        stock_is_right: False: no option makes them equal; the family's own tests say what is right.
        layer_pruners: False: pruning at a layer is refused by name.
        pictures, unequal, several: whether stock takes, in one call, an image beside a video, videos of unequal
            length, and several videos in a row.
        processor: makes the processor of a model; None: it is the family's own, made without files.
        keeps_prefix: whether the model's cache lets `tango.encode` keep keys and values of a video.
        stock_wrong: ways of decoding ("beams") in which stock is wrong or refuses, perhaps with one kind of prompt
            alone ("several beams"), by the versions of transformers.
    """

    name: str
    model: Callable[..., Any]
    inputs: Callable[..., Inputs]
    tokens_per_frame: int
    frames_per_step: int = 1
    stock: Callable[[Inputs], Inputs] = for_stock
    options: Mapping[str, str] = field(default_factory=dict)
    stock_is_right: bool = True
    layer_pruners: bool = True
    pictures: bool = True
    unequal: bool = True
    several: bool = True
    processor: Callable[[Any], Any] | None = None
    keeps_prefix: bool = True
    stock_wrong: Mapping[str, str] = field(default_factory=dict)

    @property
    def frames(self) -> tuple[int, int]:
        """Lengths of the videos of a batch for stock."""
        return (6, 4) if self.unequal else (6, 6)

    def tokens(self, *rows: Row) -> list[int]:
        """Visual tokens of every video of these rows, unpruned."""
        videos = [part for row in rows for part in row if isinstance(part, Video)]
        return [-(-video.frames // self.frames_per_step) * self.tokens_per_frame for video in videos]


def _modules() -> list[Any]:
    return [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]


def variants() -> dict[str, Family]:
    """Models of these families that are built otherwise, such as with another tower; by names of their own."""
    return {family.name: family for module in _modules() for family in getattr(module, "VARIANTS", ())}


def _found() -> dict[str, Family]:
    each = [module.FAMILIES if hasattr(module, "FAMILIES") else (module.FAMILY,) for module in _modules()]
    return {family.name: family for families in each for family in families}


def all_families() -> dict[str, Family]:
    """By name."""
    return dict(sorted(_found().items()))
