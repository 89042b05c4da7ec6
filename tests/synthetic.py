"""Visual tokens of a made-up video: scenes with a still background, moving parts and cuts; long-tailed saliency."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tango.containers import VisualTokens


def video_tokens(
    seed: int = 0,
    *,
    frames: int = 8,
    grid: tuple[int, int] = (6, 6),
    dim: int = 48,
    scenes: int = 2,
    static: float = 0.6,
    flicker: float = 0.0,
    sinks: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> VisualTokens:
    """Make the tokens of `frames` frames.

    Args:
        scenes: takes of about equal length, with unrelated content.
        static: share of each scene's places that hardly change; 1 freezes a scene but for faint noise, 0 leaves no
            token like its predecessor.
        flicker: how much still places waver, some of them more than others; from about 0.5 some are no longer static.
        sinks: places whose saliency towers over all others.
    """
    g = torch.Generator().manual_seed(seed)
    H, W = grid
    scene = torch.arange(frames) * scenes // frames
    coarse = torch.randn(scenes, dim, max(2, H // 2), max(2, W // 2), generator=g)
    field = F.interpolate(coarse, size=grid, mode="bilinear", align_corners=True)  # neighbours look alike
    still = field.flatten(2).mT + 0.3 * torch.randn(scenes, H * W, dim, generator=g)
    moving = torch.rand(scenes, H * W, generator=g).argsort(-1) >= round(static * H * W)
    objects = torch.randn(scenes, H * W, dim, generator=g)
    waver = 0.1 + flicker * torch.rand(scenes, H * W, 1, generator=g)[scene]
    x = still[scene] + waver * torch.randn(frames, H * W, dim, generator=g)
    for t, s in enumerate(scene.tolist()):
        drifted = objects[s].view(H, W, dim).roll((t, 2 * t), dims=(0, 1)).flatten(0, 1)
        changing = (-1) ** t * (drifted + 0.5 * torch.randn(H * W, dim, generator=g))
        x[t] = torch.where(moving[s][:, None], changing, x[t])
    saliency = (0.7 * torch.randn(scenes, H * W, generator=g)[scene] + torch.randn(frames, H * W, generator=g)).exp()
    saliency[:, list(sinks)] += 100 * saliency.max()
    return VisualTokens(
        features=x.to(dtype).contiguous(),
        grid=grid,
        timestamps_s=(0.3 + 1.4 * torch.rand(frames, generator=g)).cumsum(0),
        saliency=saliency / saliency.sum(-1, keepdim=True),
        frame_embeds=x.mean(1) @ torch.randn(dim, 20, generator=g) / dim**0.5,
        keys=(x @ torch.randn(dim, 16, generator=g)).to(dtype) / dim**0.5,
        text=torch.randn(5, dim, generator=g).to(dtype),
        sink_positions=sinks,
    )


VIDEOS: dict[str, dict[str, Any]] = {
    "two_scenes": {"seed": 1},
    "flicker": {"seed": 2, "flicker": 0.9, "frames": 9, "sinks": (3, 20)},
    "one_scene": {"seed": 3, "scenes": 1, "static": 0.3},
    "all_static": {"seed": 4, "scenes": 1, "static": 1.0},
    "all_dynamic": {"seed": 5, "static": 0.0},
    "wide": {"seed": 6, "grid": (3, 10), "scenes": 3, "dim": 50},
}
