"""Equal frames are found wherever they stand, and only those."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tango.models.processors.llava import resize_frames
from tango.video import repeats
from tango.video.repeats import first_equal, first_equal_steps


def frames(kinds: list[int]) -> torch.Tensor:
    """Frames (T, 20, 6, 3), equal where their kinds are; kinds differ in one byte of one row."""
    made = torch.full((len(kinds), 20, 6, 3), 7, dtype=torch.uint8)
    for t, kind in enumerate(kinds):
        made[t, kind % 20, 3, 1] = 100 + kind
    return made


@given(kinds=st.lists(st.integers(0, 39), min_size=1, max_size=30))
def test_equals_the_plain_comparison_of_all_pairs(kinds: list[int]) -> None:
    expected = [kinds.index(kind) for kind in kinds]
    assert first_equal(frames(kinds)) == expected
    assert first_equal(frames(kinds).flip(2).transpose(1, 2)) == expected  # other strides


def test_frames_of_equal_checksums_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats.zlib, "crc32", lambda _: 1)
    assert first_equal(frames([4, 2, 4, 3, 2, 2])) == [0, 1, 0, 3, 1, 1]


@given(kinds=st.lists(st.integers(0, 3), min_size=1, max_size=15), per_step=st.integers(1, 3))
def test_steps_are_equal_if_all_their_frames_are(kinds: list[int], per_step: int) -> None:
    padded = kinds + kinds[-1:] * (-len(kinds) % per_step)
    steps = [padded[i : i + per_step] for i in range(0, len(padded), per_step)]
    assert first_equal_steps([kinds.index(kind) for kind in kinds], per_step) == [steps.index(step) for step in steps]


def test_repeated_frames_are_resized_once_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = torch.randint(0, 256, (3, 60, 80, 3), dtype=torch.uint8)[[0, 1, 0, 2, 1, 1]]
    expected, sizes = resize_frames(shown, (32, 32)), []
    stock = torch.nn.functional.interpolate

    def interpolate(x: torch.Tensor, **options: object) -> torch.Tensor:
        sizes.append(len(x))
        return stock(x, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)
    assert torch.equal(resize_frames(shown, (32, 32), first_equal(shown)), expected)
    assert sizes == [3]
