"""Scenes: shots of real clips one after the other, a picture in the middle, and coloured objects at the sides.

A seed decides everything, so all that can be asked has an exact answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tango.containers import Video
from tango.lab.small.sources import RATE, Shot, Sources
from tango.mini.scenes import COLORS
from tango.mini.shapes import SHAPES, coverage

LOOKS = ("grey", "negative", "flipped")
SIDES: Mapping[str, tuple[float, float]] = {  # centres (row, column), as shares of the frame
    "top": (0.12, 0.5), "bottom": (0.88, 0.5), "left": (0.5, 0.12), "right": (0.5, 0.88),
}  # fmt: skip
DURATIONS_S = (6, 7, 8)
MOST_PARTS = 4
_SLOWEST = 0.4  # of a shot's own speed
_RADIUS = 0.09  # of an object, as a share of the frame
_PICTURE = 0.45  # side of the picture, likewise


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a scene: one shot, cropped to a square."""

    seconds: tuple[int, int]  # begin and end in the scene; between two parts is a cut
    shot: int
    start_s: float  # in the shot
    speed: float
    crop: tuple[float, float, float]  # side, as a share of the shorter one; and where it lies, 0 to 1: row, column
    mirrored: bool
    look: str  # one of `LOOKS`, or "plain"


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A coloured object that stays at one side of the frame."""

    color: str
    shape: str
    side: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that is shown. Where it is played backwards, so is every part; their order is as listed."""

    seed: tuple[int, ...]
    parts: tuple[Part, ...]
    backwards: bool
    picture: tuple[str, float, float] | None  # name, and from when to when
    things: tuple[Thing, ...]

    @property
    def duration_s(self) -> int:
        return self.parts[-1].seconds[1]

    @property
    def cuts_s(self) -> tuple[int, ...]:
        """When a part follows another."""
        return tuple(part.seconds[0] for part in self.parts[1:])


def draw_scene(seed: tuple[int, ...], sources: Sources) -> Scene:
    """Draw a scene of one to four parts; neighbours show different shots."""
    rng = np.random.default_rng(seed)
    duration_s = int(rng.choice(DURATIONS_S))
    count = int(rng.integers(1, MOST_PARTS + 1))
    cuts = np.sort(rng.choice(np.arange(1, duration_s), count - 1, replace=False)).tolist()
    looks = ["plain"] * count
    if rng.random() < 0.6:
        places = rng.choice(count, min(count, 2), replace=False)
        for place, look in zip(places, rng.permutation(LOOKS), strict=False):
            looks[int(place)] = str(look)
    parts: list[Part] = []
    for look, seconds in zip(looks, pairwise([0, *cuts, duration_s]), strict=True):
        before = parts[-1].shot if parts else None
        parts.append(_draw_part(rng, sources.shots, seconds, before, look))
    picture = None
    if rng.random() < 0.6:
        lasts = float(rng.uniform(1.5, duration_s / 2))
        begin = float(rng.uniform(0, duration_s - lasts))
        picture = (str(rng.choice(sorted(sources.pictures))), begin, begin + lasts)
    count = int(rng.integers(0, 3))
    drawn = zip(rng.permutation(list(COLORS)), rng.permutation(SHAPES), rng.permutation(list(SIDES)), strict=False)
    things = [Thing(color=str(color), shape=str(shape), side=str(side)) for color, shape, side in drawn][:count]
    backwards = bool(rng.integers(2))
    return Scene(seed=seed, parts=tuple(parts), backwards=backwards, picture=picture, things=tuple(things))


def _draw_part(
    rng: np.random.Generator, shots: tuple[Shot, ...], seconds: tuple[int, int], before: int | None, look: str
) -> Part:
    lasts = seconds[1] - seconds[0]
    others = [i for i in range(len(shots)) if i != before]
    fitting = [i for i in others if shots[i].seconds >= _SLOWEST * lasts] or others
    shot = int(rng.choice(fitting))
    speed = min(float(rng.uniform(0.5, 1.5)), shots[shot].seconds / lasts)
    return Part(
        seconds=seconds,
        shot=shot,
        start_s=float(rng.uniform(0, max(0.0, shots[shot].seconds - speed * lasts))),  # never -1e-16
        speed=speed,
        crop=(float(rng.uniform(0.7, 1)), float(rng.random()), float(rng.random())),
        mirrored=bool(rng.integers(2)),
        look=look,
    )


def render(scene: Scene, sources: Sources, *, num_frames: int, side: int) -> Video:
    """The scene as a video of so many frames, from its first moment to its last."""
    times = np.linspace(0, scene.duration_s, num_frames)
    frames = np.stack([_frame(scene, sources, float(time_s), side) for time_s in times])
    return Video(
        frames=torch.from_numpy(frames),
        timestamps_s=torch.from_numpy(times),
        frame_indices=tuple(range(num_frames)),
        num_source_frames=num_frames,
        duration_s=float(scene.duration_s),
        fps=num_frames / scene.duration_s,
        path="-".join(map(str, scene.seed)),
        backend="scene",
    )


def _frame(scene: Scene, sources: Sources, time_s: float, side: int) -> NDArray[np.uint8]:
    part = next((part for part in scene.parts if time_s < part.seconds[1]), scene.parts[-1])
    begin, end = part.seconds
    into_s = end - time_s if scene.backwards else time_s - begin
    shot = sources.shots[part.shot].frames
    picture = _cropped(shot[min(len(shot) - 1, int((part.start_s + part.speed * into_s) * RATE))], part, side)
    if part.look == "grey":
        picture = picture.mean(-1, keepdims=True).repeat(3, axis=-1)
    elif part.look == "negative":
        picture = 255 - picture
    elif part.look == "flipped":
        picture = picture[::-1].copy()
    for thing in scene.things:
        _paint(picture, thing)
    if scene.picture is not None and scene.picture[1] <= time_s <= scene.picture[2]:
        inset = round(_PICTURE * side)
        first = (side - inset) // 2
        shown = Image.fromarray(sources.pictures[scene.picture[0]]).resize((inset, inset), Image.Resampling.BICUBIC)
        picture[first : first + inset, first : first + inset] = np.asarray(shown)
    return picture.round().astype(np.uint8)


def _cropped(frame: NDArray[np.uint8], part: Part, side: int) -> NDArray[np.float32]:
    share, row, column = part.crop
    size = round(share * min(frame.shape[:2]))
    top, left = (round(where * (extent - size)) for where, extent in zip((row, column), frame.shape[:2], strict=True))
    cut = frame[top : top + size, left : left + size]
    image = Image.fromarray(np.ascontiguousarray(cut[:, ::-1] if part.mirrored else cut))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _paint(picture: NDArray[np.float32], thing: Thing) -> None:
    side = len(picture)
    row, column = SIDES[thing.side]
    radius = _RADIUS * side
    y, x = np.mgrid[:side, :side]
    y, x = (y + 0.5 - row * side) / radius, (x + 0.5 - column * side) / radius
    alpha = coverage(SHAPES.index(thing.shape), y, x, softness=1 / radius)[..., None]
    picture += alpha * (np.array(COLORS[thing.color]) - picture)
