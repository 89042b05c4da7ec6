"""The scene generator: what happens in a clip, drawn from a seed, and its pixels at any moment.

A clip is a sequence of scenes with hard cuts. In each scene a textured background drifts under a moving, slightly
shaking camera while the light changes; coloured and patterned objects stand still or cross the picture, turn and change
size; grey things lie around, a grey bar may pass in front, and a caption of one letter shows for a while. Frame times
are irregular.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from tango.mini.shapes import LETTERS, PATTERNS, SHAPES, brightness, coverage, letter_mask

SIZE = 112  # pixels per side
CELL = 16  # pixels per side of what one visual token covers
GRID = SIZE // CELL
FRAMES_PER_SAMPLE = 3  # file frames per frame that the model sees at its usual frame count
COLORS = {
    "red": (215, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 225),
    "yellow": (230, 215, 50), "purple": (150, 50, 185), "cyan": (60, 205, 220),
}  # fmt: skip
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (row, column)
QUADRANTS = ("topleft", "topright", "bottomleft", "bottomright")
_TEXTURE = 192  # pixels per side of a background, which repeats
CAPTION_OWNER = 100  # see render_frame
_CAPTION = 16  # pixels per side of the box around a letter


@dataclass(frozen=True, kw_only=True, eq=False)
class Thing:
    """A coloured object, present during one whole scene. `start` and `end` are its centre in pixels, (row, column)."""

    color: int
    pattern: int
    shape: int
    scene: int
    radius: float
    start: tuple[float, float]
    end: tuple[float, float]  # equal to `start` if it stands still
    direction: int | None  # index into DIRECTIONS, or None
    wobble: tuple[float, float, float, float]  # amplitudes of swelling, stretching, turning; angular frequency per s

    @property
    def quadrants(self) -> tuple[int, int]:
        """The quadrants in which the object starts and ends."""
        first, last = (2 * (p[0] > SIZE / 2) + (p[1] > SIZE / 2) for p in (self.start, self.end))
        return int(first), int(last)


@dataclass(frozen=True, kw_only=True, eq=False)
class Caption:
    """A letter in a dark box, shown for some frames of one scene."""

    letter: int
    corner: tuple[int, int]
    frames: tuple[int, int]  # first, one past the last


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What surrounds the things between two cuts."""

    frames: tuple[int, int]  # first, one past the last
    seed: int
    color: np.ndarray  # (3,) mean of the background
    contrast: float
    drift: tuple[float, float]  # the camera's movement over the background, in pixels per second
    shake: float  # pixels
    light: tuple[float, float, float]  # amplitude, angular frequency per s, phase
    litter: tuple[tuple[int, int, int, int, int], ...]  # grey things in the background: row, column, h, w, grey
    bar: tuple[float, float, int, int, int] | None  # grey bar in front: start, end, width, axis, grey


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One clip. The same seed and number of frames give the same clip on every machine."""

    seed: tuple[int, ...]
    times_s: np.ndarray  # (num_frames,) when each frame is shown; irregular
    scenes: tuple[Scene, ...]
    things: tuple[Thing, ...]
    captions: tuple[Caption, ...]
    noise: float  # standard deviation of the sensor noise, in 0..255
    bursts: tuple[tuple[int, int, int], ...]  # patches of noise in one frame each: frame, row, column

    @property
    def num_frames(self) -> int:
        return len(self.times_s)

    def scene_at(self, frame: int) -> int:
        """Number of the scene that a frame belongs to."""
        return next(i for i, scene in enumerate(self.scenes) if frame < scene.frames[1])


def draw_clip(seed: tuple[int, ...], *, num_samples: int = 16, num_scenes: tuple[int, ...] = (3, 4)) -> Clip:
    """Draw a clip that is meant to be seen in `num_samples` evenly spaced frames.

    The first and the last scene hold one thing each, the others 0 to 3 in all, so 2, 3, 4 and 5 are equally frequent.
    No two things of a clip share a colour or a pattern. Half of the things move, from one half of the picture to the
    other. One caption shows for a while.
    """
    rng = np.random.default_rng(seed)
    times_s = _draw_times(rng, num_samples)
    cuts = _draw_cuts(rng, len(times_s), int(rng.choice(num_scenes)))
    scenes = tuple(_draw_scene(rng, a, b) for a, b in pairwise(cuts))
    between = rng.integers(1, len(scenes) - 1, rng.integers(0, 4))
    things = _draw_things(rng, scenes, [0, *sorted(between.tolist()), len(scenes) - 1])
    return _finish(rng, seed, times_s, scenes, things, (_draw_caption(rng, scenes),))


def draw_crowd(seed: tuple[int, ...], *, num_samples: int) -> Clip:
    """Draw a clip of one scene with five things and four captions, for training: much to see in few frames."""
    rng = np.random.default_rng(seed)
    times_s = _draw_times(rng, num_samples)
    scenes = (_draw_scene(rng, 0, len(times_s)),)
    captions = tuple(_draw_caption(rng, scenes) for _ in range(4))
    return _finish(rng, seed, times_s, scenes, _draw_things(rng, scenes, [0] * len(PATTERNS)), captions)


def _finish(
    rng: np.random.Generator,
    seed: tuple[int, ...],
    times_s: np.ndarray,
    scenes: tuple[Scene, ...],
    things: tuple[Thing, ...],
    captions: tuple[Caption, ...],
) -> Clip:
    bursts = rng.integers([0, 0, 0], [len(times_s), SIZE - 20, SIZE - 20], (rng.integers(0, 4), 3))
    return Clip(
        seed=tuple(seed),
        times_s=times_s,
        scenes=scenes,
        things=things,
        captions=captions,
        noise=float(rng.uniform(2, 7)),
        bursts=tuple((int(frame), int(row), int(column)) for frame, row, column in bursts),
    )


def _draw_times(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Draw frame times with slow and fast passages and unequal gaps, on average about five frames per second."""
    num_frames = FRAMES_PER_SAMPLE * (num_samples - 1) + 1
    gaps = np.exp(rng.normal(0, 0.5, num_frames // 6 + 1)).repeat(6)[:num_frames] * rng.uniform(0.6, 1.4, num_frames)
    return np.round((np.cumsum(gaps) - gaps[0]) / gaps.mean() * rng.uniform(0.15, 0.25), 3)


def _draw_cuts(rng: np.random.Generator, num_frames: int, num_scenes: int) -> list[int]:
    """Draw the scenes' borders; every scene has a few frames at least."""
    shortest = num_frames // (num_scenes + 1)
    slack = np.sort(rng.integers(0, num_frames - shortest * num_scenes + 1, num_scenes - 1))
    return [0, *(slack + shortest * np.arange(1, num_scenes)).tolist(), num_frames]


def _draw_scene(rng: np.random.Generator, first: int, end: int) -> Scene:
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0, 14)
    grey = rng.uniform(60, 150)
    litter = tuple(
        (*rng.integers(0, _TEXTURE - 30, 2).tolist(), *rng.integers(8, 24, 2).tolist(), int(rng.integers(20, 220)))
        for _ in range(rng.integers(3, 9))
    )
    bar = None
    if rng.random() < 0.5:
        side = bool(rng.integers(2))
        ends = (-20.0, SIZE + 20.0) if side else (SIZE + 20.0, -20.0)
        bar = (*ends, int(rng.integers(6, 15)), int(rng.integers(2)), int(rng.integers(20, 200)))
    return Scene(
        frames=(first, end),
        seed=int(rng.integers(1 << 31)),
        color=grey + rng.uniform(-18, 18, 3),
        contrast=float(rng.uniform(8, 26)),
        drift=(float(speed * np.sin(angle)), float(speed * np.cos(angle))),
        shake=float(rng.uniform(0, 1.5)),
        light=(float(rng.uniform(0, 0.15)), float(rng.uniform(0.3, 2.5)), float(rng.uniform(0, 2 * np.pi))),
        litter=litter,
        bar=bar,
    )


def _draw_things(rng: np.random.Generator, scenes: tuple[Scene, ...], numbers: list[int]) -> tuple[Thing, ...]:
    """Draw one thing for every scene number in `numbers`."""
    colors, patterns = rng.permutation(len(COLORS)), rng.permutation(len(PATTERNS))
    long_enough = [s.frames[1] - s.frames[0] >= 3 * FRAMES_PER_SAMPLE for s in scenes]
    things: list[Thing] = []
    for i, scene in enumerate(numbers):
        others = [t for t in things if t.scene == scene]
        for _ in range(15):  # until it keeps clear of the others, as it nearly always does
            thing = _draw_thing(rng, int(colors[i]), int(patterns[i]), scene, may_move=long_enough[scene])
            if all(_gap(thing, other) > 3 for other in others):
                break
        things.append(thing)
    return tuple(things)


def _draw_thing(rng: np.random.Generator, color: int, pattern: int, scene: int, *, may_move: bool) -> Thing:
    radius = float(rng.uniform(11, 16))
    edge, middle = radius * 1.1, SIZE / 2
    quadrant = np.array(divmod(int(rng.integers(4)), 2))
    place = rng.uniform(edge, middle - radius / 2, 2)
    start = np.where(quadrant == 1, SIZE - place, place)
    end, direction = start.copy(), None
    if may_move and rng.random() < 0.5:
        direction = int(rng.integers(4))
        step = np.array(list(DIRECTIONS.values())[direction])
        axis = int(np.abs(step).argmax())
        near, far = rng.uniform(edge, middle - 20), rng.uniform(middle + 20, SIZE - edge)
        start[axis], end[axis] = (near, far) if step[axis] > 0 else (far, near)
    swell, stretch, turn = rng.uniform(0, 0.12), rng.uniform(0, 0.15), rng.uniform(0, 0.35)
    return Thing(
        color=color,
        pattern=pattern,
        shape=int(rng.integers(len(SHAPES))),
        scene=scene,
        radius=radius,
        start=(float(start[0]), float(start[1])),
        end=(float(end[0]), float(end[1])),
        direction=direction,
        wobble=(float(swell), float(stretch), float(turn), float(rng.uniform(0.5, 3))),
    )


def _gap(a: Thing, b: Thing) -> float:
    """Smallest distance between two things' outlines while both cross the scene."""
    s = np.linspace(0, 1, 9)[:, None]
    between = (1 - s) * np.array(a.start) + s * np.array(a.end) - (1 - s) * np.array(b.start) - s * np.array(b.end)
    return float(np.abs(between).max(axis=1).min() - a.radius - b.radius)


def _draw_caption(rng: np.random.Generator, scenes: tuple[Scene, ...]) -> Caption:
    first, end = scenes[rng.integers(len(scenes))].frames
    length = min(end - first, int(rng.integers(3, 7)) * FRAMES_PER_SAMPLE)
    start = int(rng.integers(first, end - length + 1))
    row = SIZE - _CAPTION if rng.random() < 0.7 else 0
    column = 8 * int(rng.integers(0, (SIZE - _CAPTION) // 8 + 1))
    return Caption(letter=int(rng.integers(len(LETTERS))), corner=(row, column), frames=(start, start + length))


@lru_cache(maxsize=16)
def _background(scene: Scene) -> np.ndarray:
    """What the camera passes over, (H, W, 3): a cloudy texture that repeats in both directions, with grey things."""
    rng = np.random.default_rng(scene.seed)
    frequency = np.hypot(np.fft.fftfreq(_TEXTURE)[:, None], np.fft.rfftfreq(_TEXTURE)[None])
    frequency[0, 0] = np.inf
    spectrum = np.exp(2j * np.pi * rng.random(frequency.shape)) * frequency ** -rng.uniform(1.0, 1.8)
    texture = np.fft.irfft2(spectrum, s=(_TEXTURE, _TEXTURE))
    picture = (scene.color + scene.contrast * (texture / texture.std())[..., None]).astype(np.float32)
    for row, column, height, width, grey in scene.litter:
        part = picture[row : row + height, column : column + width]
        part[:] = grey
        if grey % 3 == 0:  # a hatched one
            part[::3] = 20
    return picture


def _camera(clip: Clip, scene: Scene, time_s: float) -> np.ndarray:
    """The background as the camera sees it, moved by whole and fractional pixels."""
    t = time_s - clip.times_s[scene.frames[0]]
    shake = scene.shake * np.array([np.sin(5.1 * t), np.sin(6.7 * t + 1)])
    whole, part = np.divmod(np.array(scene.drift) * t + shake, 1)
    rows = (np.arange(SIZE + 1) + int(whole[0])) % _TEXTURE
    columns = (np.arange(SIZE + 1) + int(whole[1])) % _TEXTURE
    picture = _background(scene)[rows[:, None], columns[None]]
    a, b = part.astype(np.float32)
    picture = picture[:-1] + a * (picture[1:] - picture[:-1])
    return picture[:, :-1] + b * (picture[:, 1:] - picture[:, :-1])


def render_frame(clip: Clip, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one frame.

    Returns:
        Pixels (SIZE, SIZE, 3) in uint8, and what shows at each pixel: a thing's number + 1, a caption's number +
        CAPTION_OWNER, 0 elsewhere.
    """
    scene = clip.scenes[number := clip.scene_at(frame)]
    time_s = float(clip.times_s[frame])
    begin, end = (float(clip.times_s[k]) for k in (scene.frames[0], scene.frames[1] - 1))
    progress = (time_s - begin) / max(end - begin, 1e-6)
    picture = _camera(clip, scene, time_s)
    owner = np.zeros((SIZE, SIZE), np.uint8)
    for i, thing in enumerate(clip.things):
        if thing.scene == number:
            _paint(picture, owner, thing, i + 1, time_s, progress)
    if scene.bar is not None:
        first, last, width, axis, grey = scene.bar
        middle = first + (last - first) * progress
        covered = slice(max(0, round(middle - width / 2)), max(0, round(middle + width / 2)))
        where = (covered, slice(None)) if axis == 0 else (slice(None), covered)
        picture[where], owner[where] = grey, 0
    amplitude, rate, phase = scene.light
    picture *= np.float32(1 + amplitude * np.sin(rate * time_s + phase))
    rng = np.random.default_rng((*clip.seed, frame + 1))  # not 0: a trailing 0 changes no seed
    for at, row, column in clip.bursts:
        if at == frame:
            picture[row : row + 18, column : column + 18] = rng.uniform(0, 255, (18, 18, 1))
            owner[row : row + 18, column : column + 18] = 0
    for i, caption in enumerate(clip.captions):
        if caption.frames[0] <= frame < caption.frames[1]:
            row, column = caption.corner
            box = (slice(row, row + _CAPTION), slice(column, column + _CAPTION))
            picture[box] = np.where(letter_mask(caption.letter)[..., None], 250, 15)
            owner[box] = CAPTION_OWNER + i
    picture += clip.noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8), owner


def _paint(picture: np.ndarray, owner: np.ndarray, thing: Thing, number: int, time_s: float, progress: float) -> None:
    """Draw a thing as it is at one moment, with a little shading, and enter it in `owner`."""
    swell, stretch, turn, rate = thing.wobble
    wave = np.sin(rate * time_s + thing.color)
    row, column = (a + (b - a) * progress for a, b in zip(thing.start, thing.end, strict=True))
    radius = thing.radius * (1 + swell * wave)
    reach = int(radius * 1.3) + 2
    top, left = max(0, int(row) - reach), max(0, int(column) - reach)
    part = (slice(top, min(SIZE, int(row) + reach + 1)), slice(left, min(SIZE, int(column) + reach + 1)))
    y, x = np.mgrid[part]
    y, x = (y - row) / radius, (x - column) / radius
    sin, cos = np.sin(turn * wave), np.cos(turn * wave)
    y, x = (cos * y - sin * x) * (1 + stretch * wave), (sin * y + cos * x) / (1 + stretch * wave)
    alpha = coverage(thing.shape, y, x, softness=1 / radius)[..., None]
    bright = brightness(thing.pattern, y * radius, x * radius) * (1 - 0.12 * y)
    color = np.array(list(COLORS.values())[thing.color]) * bright[..., None]
    picture[part] += alpha * (color - picture[part])
    owner[part][alpha[..., 0] > 0.5] = number


def cell_labels(clip: Clip, owner: np.ndarray) -> np.ndarray:
    """Label every position of the token grid by what it shows, from `render_frame`'s second result.

    Returns:
        (GRID, GRID, 5): colour + 1, pattern + 1, letter + 1 (0 for none), and the thing's centre (row, column).
        A position shows a thing that covers a quarter of it, or has 30 % of its own visible area there.
    """
    labels = np.zeros((GRID, GRID, 5), np.int64)
    largest = np.zeros((GRID, GRID))
    for number in np.flatnonzero(np.bincount(owner.ravel(), minlength=256)[1:]) + 1:
        shown = owner == number
        area = shown.reshape(GRID, CELL, SIZE).sum(1).reshape(GRID, GRID, CELL).sum(-1)
        cells = (area > min(0.3 * area.sum(), CELL * CELL / 4)) & (area >= largest)
        largest[cells] = area[cells]
        if number >= CAPTION_OWNER:
            what = (0, 0, clip.captions[number - CAPTION_OWNER].letter + 1)
        else:
            what = (clip.things[number - 1].color + 1, clip.things[number - 1].pattern + 1, 0)
        rows, columns = np.nonzero(shown)
        labels[cells] = (*what, round(rows.mean()), round(columns.mean()))
    return labels
