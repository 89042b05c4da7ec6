"""Multimodal rotary positions against a table of expected numbers and a token-by-token reimplementation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tango.models.mrope import grid_times, mrope_positions, seconds_per_step, vision_positions

TEXT, IMAGE, VIDEO = 7, 8, 9


# Numbers of the original code (transformers 4.49) for 5 steps of 12 x 20 patches after 4 text tokens, at 2 positions a
# second: temporal positions of the steps, and the position of the first text token after the video.
@pytest.mark.parametrize(
    ("seconds", "temporal", "text"),
    [
        (1.0, [4, 6, 8, 10, 12], 14),
        (0.5, [4, 5, 6, 7, 8], 14),
        (3.7, [4, 11, 18, 26, 33], 34),
        (7.3, [4, 18, 33, 47, 62], 63),
    ],
)
def test_table(seconds, temporal, text):
    ids = torch.tensor([[TEXT] * 4 + [VIDEO] * 300 + [TEXT] * 2])
    video = vision_positions((5, 6, 10), step=seconds, tokens_per_second=2)
    positions = mrope_positions(ids, None, {VIDEO: [video]})[:, 0]
    assert positions[:, :4].tolist() == [[0, 1, 2, 3]] * 3
    assert positions[0, 4:304:60].tolist() == temporal
    assert positions[:, 4].tolist() == [4, 4, 4]
    assert positions[:, 303].tolist() == [temporal[-1], 4 + 5, 4 + 9]
    assert positions[:, 304:].tolist() == [[text, text + 1]] * 3


def brute_force(row: list, rate: float) -> list[tuple[int, int, int]]:
    """Token by token. `row` holds "text", or (kind, (t, h, w), seconds per step)."""
    positions: list[tuple[int, int, int]] = []
    for part in row:
        start = 1 + max((max(p) for p in positions), default=-1)
        if part == "text":
            positions.append((start, start, start))
            continue
        _, (t, h, w), seconds = part
        for i in range(t):
            for y in range(h):
                for x in range(w):
                    positions.append((start + math.floor(i * seconds * rate), start + y, start + x))
    return positions


# Quarters, so that no product is close to a whole number without being one.
seconds = st.integers(0, 40).map(lambda n: n / 4)
grids = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
parts = st.one_of(st.just("text"), st.tuples(st.sampled_from(["video", "image"]), grids, seconds))
rows_of_parts = st.lists(st.lists(parts, min_size=1, max_size=6), min_size=1, max_size=3)


def separated(row: list) -> list:
    """With text between two of one kind, as every processor writes it: a run of placeholders is one item."""
    result: list = []
    for part in row:
        if result and part != "text" and result[-1] != "text" and part[0] == result[-1][0]:
            result.append("text")
        result.append(part)
    return result


@given(rows_of_parts, st.sampled_from([1, 2, 4]), st.booleans())
def test_equals_brute_force(rows, rate, left):
    rows = [separated(row) for row in rows]
    token = {"video": VIDEO, "image": IMAGE}
    vision: dict[int, list] = {VIDEO: [], IMAGE: []}
    batch = []
    for row in rows:
        ids = []
        for part in row:
            if part == "text":
                ids.append(TEXT)
                continue
            kind, grid, step = part
            vision[token[kind]].append(vision_positions(grid, step=step, tokens_per_second=rate))
            ids += [token[kind]] * math.prod(grid)
        batch.append(ids)
    longest = max(map(len, batch))
    pads = [longest - len(ids) for ids in batch]
    padded = [[VIDEO] * n + ids if left else ids + [VIDEO] * n for ids, n in zip(batch, pads, strict=True)]
    ones = [[1] * len(ids) for ids in batch]
    mask = torch.tensor([[0] * n + m if left else m + [0] * n for m, n in zip(ones, pads, strict=True)])
    positions = mrope_positions(torch.tensor(padded), mask, vision)
    for i, row in enumerate(rows):
        assert positions[:, i, mask[i].bool()].T.tolist() == [list(p) for p in brute_force(row, rate)]


def test_temporal_positions_are_floored_in_the_original_order():
    """Seconds first, then positions per second, in float32: 5 * 0.7 * 2 is 7, not 6."""
    assert vision_positions((11, 1, 1), step=0.7, tokens_per_second=2)[0].tolist() == [
        0, 1, 2, 4, 5, 7, 8, 9, 11, 12, 14,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "videos", "message"),
    [
        ([VIDEO] * 4, [(1, 2, 3)], "the next image or video makes 6 tokens"),
        ([VIDEO] * 4 + [TEXT] * 2, [(1, 2, 3)], "the next image or video makes 6 tokens"),
        ([VIDEO] * 6, [], "none is left"),
        ([VIDEO] * 7, [(1, 2, 3)], "a run of 7 placeholders from token 0 .* makes 6"),
        ([TEXT] + [VIDEO] * 12 + [TEXT], [(1, 2, 2)] * 3, "a run of 12 placeholders from token 1 .* makes 4"),
        ([VIDEO] * 6, [(1, 2, 3)] * 2, "more images or videos than"),
    ],
)
def test_placeholders_and_videos_must_fit(ids, videos, message):
    with pytest.raises(ValueError, match=message):
        mrope_positions(torch.tensor([ids]), None, {VIDEO: [vision_positions(grid) for grid in videos]})


FRAMES = [i * 0.7 for i in range(6)]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"second_per_grid_ts": torch.tensor([2.5])}, 2.5),
        ({"video_timestamps_s": [FRAMES]}, 1.4),
        ({"video_timestamps_s": [FRAMES[:5]]}, 1.4),  # an odd number: the last frame is alone
        ({"video_timestamps_s": [FRAMES[:3]]}, 0.7),  # one time per step
        ({"video_timestamps_s": [FRAMES], "second_per_grid_ts": [1.0]}, 1.0),  # what is said counts
        ({"video_timestamps_s": [[i / 24 for i in range(6)]], "second_per_grid_ts": [2 / 24]}, 2 / 24),  # it is true
    ],
)
def test_seconds_per_step(inputs, expected):
    assert seconds_per_step(inputs, [3], 2, warn=True) == [pytest.approx(expected, rel=1e-6)]


def test_noise_in_timestamps_moves_no_position():
    times = [(1 / 3 + 1e-13) * 3 * i - 1e-12 * i for i in range(12)]
    (step,) = seconds_per_step({"video_timestamps_s": [times]}, [6], 2, warn=False)
    assert vision_positions((6, 1, 1), step=step, tokens_per_second=2)[0].tolist() == [0, 4, 8, 12, 16, 20]


def test_an_assumed_frame_rate_is_not_used_silently():
    inputs = {"second_per_grid_ts": torch.tensor([2 / 24])}
    with pytest.warns(UserWarning, match="24 frames a second; pass video_timestamps_s"):
        assert seconds_per_step(inputs, [3], 2, warn=True) == [pytest.approx(2 / 24)]
    inputs["video_timestamps_s"] = [FRAMES]
    with pytest.warns(UserWarning, match="24 frames a second; using video_timestamps_s"):
        assert seconds_per_step(inputs, [3], 2, warn=True) == [1.4]
    with pytest.warns(UserWarning, match="neither second_per_grid_ts nor"):
        assert seconds_per_step({}, [3, 2], 2, warn=True) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("inputs", "steps", "expected"),
    [
        ({"video_timestamps_s": [[0.0, 1.0, 2.0, 9.0]]}, [2], [[0.0, 9.0]]),
        ({"video_timestamps_s": [[0.0, 1.0, 2.0, 9.0]]}, [4], [[0.0, 1.0, 2.0, 9.0]]),
        ({"video_timestamps_s": [[0.0, 1.0, 2.0, 3.0, 4.0, 9.0]]}, [3], [[0.0, 2.5, 9.0]]),
        ({"video_timestamps_s": [[5.0]]}, [1], [[5.0]]),
        ({"video_timestamps_s": [torch.tensor([5.0, 6.0]), [1.0]]}, [1, 1], [[5.0], [1.0]]),
        ({"second_per_grid_ts": [0.5, 2.0]}, [3, 2], [[0.0, 0.5, 1.0], [0.0, 2.0]]),
    ],
)
def test_grid_times(inputs, steps, expected):
    times = grid_times(inputs, steps, 2, warn=True)
    assert [t.tolist() for t in times] == expected
    assert all(t.dtype == torch.float64 for t in times)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"video_timestamps_s": [[0.0, 1.0]]}, "a time per frame or per grid step"),
        ({"video_timestamps_s": [[0.0, 1.0, 2.0]] * 2}, "one list of seconds per video"),
        ({"second_per_grid_ts": [1.0, 2.0]}, "one value per video"),
    ],
)
def test_times_must_fit_the_videos(inputs, message):
    with pytest.raises(ValueError, match=message):
        grid_times(inputs, [3], 2, warn=True)
