"""decord in a process of its own: it can hang or die inside native code, and then only killing helps.

`run_worker` starts `python -m tango.video.decord_worker VIDEO NUM_FRAMES IN_ORDER OUTPUT.npz`, which writes plain
arrays (no pickle), or prints the reason in one line and exits with 1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tango.errors import DamagedVideoWarning, VideoReadError
from tango.processes import end_with_parent
from tango.video.sampling import one_line, sample_indices
from tango.video.source import Clip

# A line of FFmpeg's log, except those about missing references, which are normal after the start of an open group.
_ERROR = rb"^\[[\w,]+ @ 0x[0-9a-f]+\] (?!mmco|co located|[Rr]eference)(.+)"
_COMMAND = (sys.executable, "-m", "tango.video.decord_worker")


def run_worker(path: str, num_frames: int, timeout_s: float, *, in_order: bool) -> Clip:
    """Read a video with decord. The worker is killed after `timeout_s`.

    Args:
        in_order: decode everything from the start, because decord's seeks land on other frames in some files.

    Raises:
        VideoReadError: decord is missing, fails, dies or hangs.
    """
    if find_spec("decord") is None:
        raise VideoReadError(path, "decord is not installed; run: pip install decord, or use backend='auto'")
    with tempfile.TemporaryDirectory(prefix="tango-decord-") as folder:
        output, chatter = os.path.join(folder, "clip.npz"), Path(folder, "chatter")
        try:
            with chatter.open("wb") as stderr:
                done = subprocess.run(
                    [*_COMMAND, os.path.abspath(path), str(num_frames), str(int(in_order)), output],
                    cwd=Path(__file__).resolve().parents[2],  # so that `-m` finds this package and no other
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    timeout=timeout_s,
                )
        except subprocess.TimeoutExpired as error:
            raise VideoReadError(
                path, f"decord took over {timeout_s:g} s and was killed; use backend='auto'"
            ) from error
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").strip() or f"its process ended with {done.returncode}"
            raise VideoReadError(path, f"decord failed ({one_line(said)}); use backend='auto'")
        if errors := re.findall(_ERROR, chatter.read_bytes()[: 1 << 20], re.MULTILINE):
            first = one_line(errors[0].decode(errors="replace"))
            said = f"decord reads it, but reports {len(errors)} errors, the first: {first}"
            warnings.warn(f"{path}: {said}; check that it plays, copy it again", DamagedVideoWarning, stacklevel=2)
        with np.load(output, allow_pickle=False) as arrays:
            return Clip(**{name: value if value.ndim else value.item() for name, value in arrays.items()})


def main(path: str, num_frames: int, in_order: bool, output: str) -> None:
    """Sample `num_frames` frames of `path` into `output`, numbered and timed as decord sees them."""
    import decord  # pyright: ignore[reportMissingImports]

    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    count = len(reader)
    indices = sample_indices(count, num_frames)
    spans_s = reader.get_frame_timestamp(np.arange(count)).astype(np.float64)  # (count, 2): shown from, to
    starts_s, end_s = spans_s[:, 0] - spans_s[0, 0], spans_s[-1, 1] - spans_s[0, 0]
    if np.any(np.diff(starts_s) <= 0):  # the container has no presentation times: use the average rate
        starts_s, end_s = np.arange(count) / reader.get_avg_fps(), count / reader.get_avg_fps()
    if in_order:
        wanted = set(indices.tolist())
        read = {
            i: frame.asnumpy() for i, frame in zip(range(count), iter(reader.next, None), strict=False) if i in wanted
        }
        frames = np.stack([read[i] for i in indices.tolist()])
    else:
        frames = reader.get_batch(indices).asnumpy()
    np.savez(
        output,
        frames=frames,
        indices=indices,
        timestamps_s=starts_s[indices],
        num_source_frames=np.array(count),
        duration_s=np.array(end_s),
    )  # the fields of a Clip


if __name__ == "__main__":
    end_with_parent()
    try:
        main(sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3])), sys.argv[4])
    except Exception as error:  # whatever decord raises; the parent turns this line into a VideoReadError
        print(" ".join(str(error).split())[:200] or type(error).__name__)
        sys.exit(1)
