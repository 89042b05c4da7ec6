"""The scene generator: the same for everyone, never the same for training and benchmark, and as it says it is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tango.lab.training.recipe import Recipe, language_seed, vision_seed
from tango.mini.benchmark import benchmark_seed
from tango.mini.scenes import (
    CAPTION_OWNER,
    CELL,
    COLORS,
    GRID,
    SIZE,
    cell_labels,
    draw_clip,
    draw_crowd,
    render_frame,
)
from tango.mini.shapes import LETTERS, PATTERNS, SHAPES, coverage, letter_mask

CLIPS = [draw_clip(benchmark_seed(i)) for i in range(60)]


def test_a_seed_gives_the_same_pixels_in_any_order():
    forward = [render_frame(draw_clip(benchmark_seed(3)), k) for k in range(46)]
    clip = draw_clip(benchmark_seed(3))
    for k in (45, 0, 17):
        assert all(np.array_equal(a, b) for a, b in zip(forward[k], render_frame(clip, k), strict=True))


def test_another_seed_gives_another_clip():
    assert not np.array_equal(render_frame(CLIPS[0], 5)[0], render_frame(CLIPS[1], 5)[0])
    assert len({tuple(clip.times_s) for clip in CLIPS}) == len(CLIPS)


def test_training_and_benchmark_share_no_clip():
    recipe = Recipe()
    training = [vision_seed(recipe, i) for i in range(300)]
    training += [language_seed(recipe, n, i) for n in recipe.clips for i in range(100)]
    seen = {tuple(draw_clip(seed, num_samples=16).times_s) for seed in training}
    assert len(seen) == len(training)
    assert not seen & {tuple(clip.times_s) for clip in CLIPS}
    assert {seed[0] for seed in training} == {1}  # no seed of training can equal one of the benchmark,
    assert {benchmark_seed(i)[0] for i in range(1000)} == {2}  # whatever its other numbers are


def test_frame_times_rise_at_unequal_distances():
    for clip in CLIPS:
        gaps = np.diff(clip.times_s)
        assert gaps.min() > 0
        assert gaps.max() > 2 * gaps.min()


def test_scenes_follow_each_other_without_gaps():
    for clip in CLIPS:
        borders = [scene.frames for scene in clip.scenes]
        assert borders[0][0] == 0
        assert borders[-1][1] == clip.num_frames == 46
        assert all(a[1] == b[0] for a, b in pairwise(borders))
        assert min(b - a for a, b in borders) >= 9


def test_things_of_a_clip_differ_and_first_and_last_scene_hold_one_each():
    for clip in CLIPS:
        assert len({t.color for t in clip.things}) == len({t.pattern for t in clip.things}) == len(clip.things)
        scenes = [t.scene for t in clip.things]
        assert scenes == sorted(scenes)
        assert scenes.count(0) == scenes.count(len(clip.scenes) - 1) == 1
        assert 2 <= len(scenes) <= 5


def middle(owner: np.ndarray, number: int) -> np.ndarray:
    return np.argwhere(owner == number).mean(0)


def test_things_go_where_they_are_said_to():
    ways = {0: (1, -1), 1: (1, 1), 2: (0, -1), 3: (0, 1)}  # direction -> axis, sign
    moved = 0
    for clip in CLIPS[:25]:
        for i, thing in enumerate(clip.things):
            a, b = clip.scenes[thing.scene].frames
            owners = [render_frame(clip, k)[1] for k in (a, b - 1)]
            if min((owner == i + 1).sum() for owner in owners) < 150:  # behind a bar or another thing
                continue
            first, last = (middle(owner, i + 1) for owner in owners)
            quadrants = [int(2 * (p[0] > SIZE / 2) + (p[1] > SIZE / 2)) for p in (first, last)]
            assert tuple(quadrants) == thing.quadrants
            if thing.direction is None:
                assert abs(last - first).max() < 6
            else:
                axis, sign = ways[thing.direction]
                assert sign * (last - first)[axis] > 30
                assert abs(last - first)[1 - axis] < 6
                moved += 1
    assert moved > 10


def test_a_things_pixels_have_its_color():
    right, total = 0, 0
    for clip in CLIPS[:10]:
        for i, thing in enumerate(clip.things):
            a, b = clip.scenes[thing.scene].frames
            pixels, owner = render_frame(clip, (a + b) // 2)
            if (owner == i + 1).sum() > 150:
                mean = pixels[owner == i + 1].mean(0)
                distance = np.linalg.norm(np.array(list(COLORS.values())) - mean, axis=1)
                right += int(distance.argmin()) == thing.color
                total += 1
    assert total > 15
    assert right >= 0.9 * total  # strong light can push one over


def test_labels_name_what_the_cells_show():
    for clip in CLIPS[:10]:
        for k in (0, 20, 45):
            _, owner = render_frame(clip, k)
            labels = cell_labels(clip, owner)
            assert labels.shape == (GRID, GRID, 5)
            for row, column in np.argwhere(labels[..., :3].any(-1)):
                inside = owner[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
                number = np.bincount(inside[inside > 0]).argmax()
                if number >= CAPTION_OWNER:
                    assert labels[row, column, 2] == clip.captions[0].letter + 1
                else:
                    thing = clip.things[number - 1]
                    assert tuple(labels[row, column, :3]) == (thing.color + 1, thing.pattern + 1, 0)


def test_the_caption_shows_its_letter_in_its_frames_only():
    for clip in CLIPS[:10]:
        caption = clip.captions[0]
        row, column = caption.corner
        for k in range(0, 46, 5):
            pixels, owner = render_frame(clip, k)
            shown = caption.frames[0] <= k < caption.frames[1]
            assert (owner >= CAPTION_OWNER).any() == shown
            if shown:
                bright = pixels[row : row + 16, column : column + 16].mean(-1) > 130
                assert (bright == letter_mask(caption.letter)).mean() > 0.98


def test_a_crowd_shows_more_than_a_clip():
    crowd = draw_crowd((1, 2, 3, 4), num_samples=4)
    assert (len(crowd.scenes), len(crowd.things), len(crowd.captions)) == (1, len(PATTERNS), 4)
    assert len(np.unique(render_frame(crowd, 4)[1])) > 5


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
def test_shapes_fill_most_of_the_unit_circle_and_nothing_far_from_it(shape):
    y, x = np.mgrid[-2:2:81j, -2:2:81j]
    covered = coverage(shape, y, x, softness=0.05)
    assert 0 <= covered.min() <= covered.max() <= 1
    assert 0.35 < covered[np.hypot(y, x) < 1].mean() <= 1
    assert covered[np.hypot(y, x) > 1.35].max() == 0


def test_letters_differ():
    masks = [letter_mask(i) for i in range(len(LETTERS))]
    assert min((a != b).sum() for i, a in enumerate(masks) for b in masks[:i]) >= 8
