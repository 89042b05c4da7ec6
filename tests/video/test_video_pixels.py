"""Colours and orientation of what is read, against the formulas of the standards."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from tango.errors import VideoReadError
from tango.video.reading import read_video
from tests import clips

COLOURS = np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 40), (255, 255, 255), (0, 0, 0)])
# Tag (ITU-T H.273, table 4) -> weights of red and blue in the luma: BT.709, FCC, BT.601 twice, SMPTE 240M, BT.2020.
WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
UNTAGGED = 2
LIMITED, FULL = 1, 2
STEP = 32  # pixels that a colour is wide


def coded(matrix: int, colour_range: int, bits: int) -> np.ndarray:
    """Return the (Y, Cb, Cr) of each colour as integers of `bits` bits (BT.709 to BT.2020 share these formulas)."""
    kr, kb = WEIGHTS[matrix]
    r, g, b = COLOURS.T / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    one = 1 << (bits - 8)
    if colour_range == FULL:
        most = (1 << bits) - 1
        values = y * most, 128 * one + cb * most, 128 * one + cr * most
    else:
        values = (16 + 219 * y) * one, (128 + 224 * cb) * one, (128 + 224 * cr) * one
    return np.clip(np.round(np.stack(values, -1)), 0, (1 << bits) - 1).astype(int)


def write_stripes(path: Path, pix_fmt: str, values: np.ndarray, *, matrix: int, colour_range: int) -> Path:
    """Write vertical stripes of the given (Y, Cb, Cr), one per colour, without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = STEP * len(values), 48, pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, colour_range
        for pts in range(2):
            frame = av.VideoFrame(stream.width, stream.height, pix_fmt)
            for plane, component in zip(frame.planes, values.T, strict=True):
                kind = np.dtype(np.uint16 if "10" in pix_fmt else np.uint8)
                rows = np.zeros((plane.height, plane.line_size // kind.itemsize), kind)
                rows[:, : plane.width] = np.repeat(component, plane.width // len(values))
                plane.update(rows.tobytes())
            frame.colorspace, frame.color_range, frame.pts = matrix, colour_range, pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def stripes(path: Path) -> np.ndarray:
    """Read the middle of each stripe."""
    return read_video(path, num_frames=1).frames.numpy()[0, 24, STEP // 2 :: STEP].astype(int)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"])
@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_the_tags_decide_on_colours(matrix: int, colour_range: int, pix_fmt: str, tmp_path: Path) -> None:
    values = coded(matrix, colour_range, 10 if "10" in pix_fmt else 8)
    path = write_stripes(tmp_path / "tagged.mp4", pix_fmt, values, matrix=matrix, colour_range=colour_range)
    assert np.abs(stripes(path) - COLOURS).max() <= 4


def test_without_tags_colours_are_those_of_limited_bt601(tmp_path: Path) -> None:
    path = write_stripes(tmp_path / "a.mp4", "yuv420p", coded(5, LIMITED, 8), matrix=UNTAGGED, colour_range=0)
    assert np.abs(stripes(path) - COLOURS).max() <= 4


def test_the_range_of_yuvj_formats_is_full(tmp_path: Path) -> None:
    path = write_stripes(tmp_path / "a.mp4", "yuvj420p", coded(1, FULL, 8), matrix=1, colour_range=FULL)
    assert np.abs(stripes(path) - COLOURS).max() <= 4


# H.264 knows RGB by its tag, the others by their pixel format.
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "matrix"),
    [("libx264rgb", "rgb24", 0), ("qtrle", "argb", 0), ("qtrle", "argb", 1), ("ffv1", "bgr0", 1)],
)
def test_rgb_stays_as_it_is_whatever_the_tag(codec: str, pix_fmt: str, matrix: int, tmp_path: Path) -> None:
    picture = np.repeat(np.repeat(COLOURS[None].astype(np.uint8), STEP, 1), 48, 0)
    path = tmp_path / "rgb.mov" if codec == "qtrle" else tmp_path / "rgb.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"qp": "0"} if codec == "libx264rgb" else {})
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], pix_fmt
        stream.codec_context.colorspace = matrix
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    np.testing.assert_array_equal(read_video(path, num_frames=1).frames[0], picture)


def test_grey_is_grey(tmp_path: Path) -> None:
    picture = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (48, 1))
    with av.open(str(tmp_path / "grey.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode())
    read = read_video(tmp_path / "grey.mkv", num_frames=1).frames[0].numpy()
    np.testing.assert_array_equal(read, np.repeat(picture[..., None], 3, -1))


def with_matrix(source: Path, path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Copy an mp4 and write a display matrix into its track header (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd")
    at = header + (44 if data[header + 4] == 0 else 56)
    numbers = [round(v * (1 << 16)) for v in (a, b, 0, c, d, 0, 0, 0)]
    data[at : at + 36] = struct.pack(">9i", *numbers, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.write_clip(tmp_path_factory.mktemp("orientation") / "plain.mp4", num_frames=2)


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)])
@pytest.mark.parametrize("swapped", [False, True])
def test_all_orientations(matrix: tuple[int, ...], swapped: bool, scale: float, plain: Path, tmp_path: Path) -> None:
    (a, _, _, d), (coded_picture, _) = matrix, clips.decode_everything(plain)
    h, w, _ = coded_picture.shape
    y, x = np.mgrid[:h, :w]
    to_x, to_y = (y if swapped else x), (x if swapped else y)  # where the matrix puts each coded pixel
    to_x, to_y = (to_x if a > 0 else to_x.max() - to_x), (to_y if d > 0 else to_y.max() - to_y)
    expected = np.zeros((w, h, 3) if swapped else (h, w, 3), np.uint8)
    expected[to_y, to_x] = coded_picture
    numbers = (0, d, a, 0) if swapped else matrix
    path = with_matrix(plain, tmp_path / "turned.mp4", *(scale * v for v in numbers))
    np.testing.assert_array_equal(read_video(path, num_frames=1).frames[0], expected)


def test_an_empty_matrix_means_nothing(plain: Path, tmp_path: Path) -> None:
    path = with_matrix(plain, tmp_path / "empty.mp4", 0, 0, 0, 0)
    np.testing.assert_array_equal(read_video(path, num_frames=1).frames[0], clips.decode_everything(plain)[0])


def test_tilted_pictures_are_refused(plain: Path, tmp_path: Path) -> None:
    half = 0.5**0.5
    with pytest.raises(VideoReadError, match="tilted by 45 degrees; convert it"):
        read_video(with_matrix(plain, tmp_path / "tilted.mp4", half, half, -half, half), num_frames=1)
