"""Synthetic visual tokens for the benchmarks: independent noise, or tokens with the statistics of a video.

They are made one frame at a time, so that little memory is needed beside the tokens themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tango.containers import VisualTokens

KINDS = ("iid", "video", "take")
_RANK = 32  # size of the vocabulary that a video's content is mixed from
_NUM_OBJECTS = 4
_NOISE_RANGE = (0.1, 3.0)  # amplitude at static and at restless positions, against content of about 1.2
_SECONDS_PER_FRAME = 2.0
_KEY_DIM = 72  # of one head of SigLIP so400m
_TEXT = 24  # tokens of the question


def synthetic_tokens(
    kind: str,
    num_frames: int,
    grid: tuple[int, int],
    dim: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> VisualTokens:
    """Make the tokens of one video with every signal; the same arguments make the same tokens.

    Frame embeddings are the means of the frames, keys a fixed random projection of the features, the text normal.

    Args:
        kind: "iid" (normal features, uniform saliency: every segment is one frame), "video" (scenes of about seven
            frames with a smooth background, part of it static, moving objects, long-tailed saliency and two sinks) or
            "take" (half of every frame is static and the other half always changes: one segment, however long).
    Raises:
        ValueError: unknown kind.

    Example:
        >>> synthetic_tokens("video", 8, (6, 6), 48).features.shape
        torch.Size([8, 36, 48])
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    N = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)
    features = torch.empty(num_frames, N, dim, dtype=dtype, device=device)
    keys = torch.empty(num_frames, N, _KEY_DIM, dtype=dtype, device=device)
    to_keys = torch.randn(dim, _KEY_DIM, generator=torch.Generator().manual_seed(seed + 1)) / math.sqrt(dim)
    embeds, saliency = torch.empty(num_frames, dim), torch.empty(num_frames, N)
    make = {"iid": _iid_frames, "video": _video_frames, "take": _take_frames}[kind]
    for t, (content, attention) in enumerate(make(num_frames, grid, dim, generator)):
        features[t] = content
        keys[t] = content @ to_keys
        embeds[t] = content.mean(0)
        saliency[t] = attention / attention.sum()
    return VisualTokens(
        features=features,
        grid=grid,
        timestamps_s=torch.arange(num_frames) * _SECONDS_PER_FRAME,
        saliency=saliency.to(device),
        frame_embeds=embeds.to(device),
        keys=keys,
        text=torch.randn(_TEXT, dim, generator=torch.Generator().manual_seed(seed + 2)).to(device, dtype),
        sink_positions=_sinks(N) if kind == "video" else (),
    )


def _sinks(num_tokens: int) -> tuple[int, ...]:
    return tuple(sorted({num_tokens // 7, num_tokens // 2}))


def _iid_frames(T: int, grid: tuple[int, int], D: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    N = grid[0] * grid[1]
    for _ in range(T):
        yield torch.randn(N, D, generator=generator), torch.rand(N, generator=generator)


def _take_frames(T: int, grid: tuple[int, int], D: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    N = grid[0] * grid[1]
    picture = torch.randn(N, D, generator=generator)
    amplitude = torch.where(torch.arange(N) < N // 2, 0.1, 1.6)[:, None]
    for _ in range(T):
        yield picture + amplitude * torch.randn(N, D, generator=generator), torch.rand(N, generator=generator)


def _video_frames(T: int, grid: tuple[int, int], D: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    atoms = torch.randn(_RANK, D, generator=generator) / math.sqrt(D)
    common = 0.6 * torch.randn(D, generator=generator) / math.sqrt(D)  # visual tokens share a direction
    made = 0
    while made < T:
        length = min(T - made, int(torch.randint(3, 12, (), generator=generator)))
        yield from _scene(length, grid, atoms, common, generator)
        made += length


def _scene(
    length: int, grid: tuple[int, int], atoms: Tensor, common: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One camera setting: its fixed parts are drawn first, then what changes, frame by frame."""
    N, D = grid[0] * grid[1], atoms.shape[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mixture, drift = _smooth_fields(_RANK, grid, generator), 0.03 * _smooth_fields(_RANK, grid, generator)
    background = common + 0.35 * normal(N, D) / math.sqrt(D)
    restless = torch.sigmoid(3 * _smooth_fields(1, grid, generator)[:, 0])  # in (0, 1); low = static
    low, high = _NOISE_RANGE
    amplitude = (low + (high - low) * restless[:, None]) / math.sqrt(D)
    size = 5 * (1 + 0.2 * normal(N, 1)).clamp_min(0.3)
    position, velocity = torch.rand(_NUM_OBJECTS, 2, generator=generator), 0.05 * normal(_NUM_OBJECTS, 2)
    look = 1.3 * normal(_NUM_OBJECTS, D) / math.sqrt(D)
    noise = normal(N, D)
    for t in range(length):
        noise = 0.5 * noise + math.sqrt(0.75) * normal(N, D)
        objects = _blobs(position + t * velocity, grid)
        content = background + (mixture + t * drift) @ atoms + objects @ look + amplitude * noise
        saliency = torch.exp(1.5 * objects.sum(1) + 0.6 * normal(N))
        saliency[list(_sinks(N))] = 1.5 * saliency.max()
        yield content * size, saliency


def _smooth_fields(count: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(N, count) values of about unit variance that vary slowly over the grid."""
    y, x = _coordinates(grid)
    field = torch.zeros(len(y), count)
    for _ in range(6):
        wave = 3 * math.pi * torch.randn(2, count, generator=generator)
        phase = 2 * math.pi * torch.rand(count, generator=generator)
        field += torch.cos(y[:, None] * wave[0] + x[:, None] * wave[1] + phase)
    return field / math.sqrt(3 * count)


def _blobs(centres: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, objects) round masks that are 1 at their centres (row, column), given in units of the grid's sides."""
    y, x = _coordinates(grid)
    squared = (y[:, None] - centres[:, 0]) ** 2 + (x[:, None] - centres[:, 1]) ** 2
    return torch.exp(-squared / (2 * 0.12**2))


def _coordinates(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.linspace(0, 1, grid[0]), torch.linspace(0, 1, grid[1]), indexing="ij")
    return y.flatten(), x.flatten()
