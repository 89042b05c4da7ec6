"""Real clips as shots, and pictures: what the scenes of tango-small are made of. Clips train or test, never both."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tango.errors import TangoError
from tango.files import write_json
from tango.fingerprints import of_file
from tango.models.checkpoint import read_json
from tango.models.processors.llava import resize_frames
from tango.video.reading import read_video

Split = Literal["train", "test"]
CLIPS: Mapping[Split, tuple[str, ...]] = {
    "train": ("Megamind", "bikes", "tree", "world"),
    "test": ("bigbuckbunny", "carphone", "vtest"),
}
PICTURES = ("bus", "cheetah", "lion", "tower")
RATE = 6  # stored frames a second
SIDE = 240  # pixels of a stored frame's shorter side, at most
SHORTEST_S = 1.5  # shots that last less are left out
CUT = 20.0  # neighbouring frames that differ by more, of 255 and on average, belong to two shots
_INDEX = "sources.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """A stretch of a clip without a cut, at `RATE` frames a second."""

    clip: str
    frames: NDArray[np.uint8]  # (F, h, w, 3), mapped from its file
    motion: float  # mean difference between neighbouring frames, of 255

    @property
    def seconds(self) -> float:
        return len(self.frames) / RATE


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """The shots of one split, the pictures, and a fingerprint of all files."""

    shots: tuple[Shot, ...]
    pictures: dict[str, NDArray[np.uint8]]  # (h, w, 3)
    content: str


def find_cuts(frames: NDArray[np.uint8]) -> list[int]:
    """Numbers of the frames that begin a new shot. Slow transitions are not found.

    Example:
        >>> find_cuts(np.repeat(np.uint8([0, 0, 99, 99, 99, 0]), 48).reshape(6, 4, 4, 3))
        [2, 5]
    """
    return (np.flatnonzero(_differences(frames) > CUT) + 1).tolist()


def _differences(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean difference between neighbouring frames, at 48 x 32 pixels."""
    import torch

    small = resize_frames(torch.from_numpy(frames), (32, 48))
    return (small[1:] - small[:-1]).abs().mean((1, 2, 3)).numpy()


def _read_clip(file: Path) -> NDArray[np.uint8]:
    """A whole clip at `RATE` frames a second and at most `SIDE` pixels."""
    duration_s = read_video(file, num_frames=1).duration_s
    frames = read_video(file, num_frames=max(2, round(duration_s * RATE))).frames
    height, width = frames.shape[1:3]
    scale = min(1.0, SIDE / min(height, width))
    if scale < 1:
        small = resize_frames(frames, (round(height * scale), round(width * scale)))
        frames = small.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
    return np.ascontiguousarray(frames.numpy())


def write_sources(clips: Path, pictures: Mapping[str, bytes], output: Path) -> None:
    """Cut the clips that are there into shots, and store them with the pictures; the folder appears when it is whole.

    Args:
        clips: folder of video files, named as in `CLIPS`.
        pictures: image files by the names in `PICTURES`.
    Raises:
        TangoError: a split would have less than two shots, or a picture is missing.
    """
    from PIL import Image

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".sources-") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        shots: list[dict[str, Any]] = []
        for split, names in CLIPS.items():
            for file in sorted(file for file in clips.iterdir() if file.stem in names):
                frames = _read_clip(file)
                for begin, end in zip(cuts := [0, *find_cuts(frames)], [*cuts[1:], len(frames)], strict=True):
                    if end - begin >= SHORTEST_S * RATE:
                        name, part = f"{file.stem}-{begin:04d}.npy", frames[begin:end]
                        np.save(made / name, part)
                        motion = round(float(_differences(part).mean()), 3)
                        shots.append({"file": name, "clip": file.stem, "split": split, "motion": motion})
        for split in CLIPS:
            if sum(shot["split"] == split for shot in shots) < 2:
                raise TangoError(f"{clips} has no two shots to {split} with; expected clips named {CLIPS[split]}")
        if missing := set(PICTURES) - set(pictures):
            raise TangoError(f"pictures are missing: {', '.join(sorted(missing))}")
        for name in PICTURES:
            image = Image.open(io.BytesIO(pictures[name])).convert("RGB")
            image.thumbnail((SIDE, SIDE))
            np.save(made / f"{name}.npy", np.asarray(image))
        files = [*(shot["file"] for shot in shots), *(f"{name}.npy" for name in PICTURES)]
        write_json(made / _INDEX, {"shots": shots, "content": {file: of_file(made / file) for file in files}})
        shutil.rmtree(output, ignore_errors=True)
        os.replace(made, output)


def read_sources(folder: Path, split: Split) -> Sources:
    """Open one split of what `write_sources` stored.

    Raises:
        TangoError: it is not there.
    """
    if not (folder / _INDEX).is_file():
        raise TangoError(f"no clips at {str(folder)!r}; scripts/train_small.sh fetches and cuts them")
    shots = tuple(
        Shot(clip=shot["clip"], frames=np.load(folder / shot["file"], mmap_mode="r"), motion=shot["motion"])
        for shot in read_json(folder / _INDEX)["shots"]
        if shot["split"] == split
    )
    pictures = {name: np.load(folder / f"{name}.npy") for name in PICTURES}
    return Sources(shots=shots, pictures=pictures, content=of_file(folder / _INDEX))
