"""The folded pooling head against transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tango
from tango.models.pooling_head import PoolingHead
from tests import tiny


@pytest.fixture(scope="module")
def siglip():
    model = tiny.tiny_siglip(tiny.llava_onevision())
    with torch.no_grad():  # biases and norms start at zero and one; make them count
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    return model


@pytest.fixture(scope="module")
def hidden(siglip) -> torch.Tensor:
    return torch.randn(3, 64, siglip.config.hidden_size, generator=torch.Generator().manual_seed(4))


def head_of(siglip) -> PoolingHead:
    return PoolingHead.from_tensors(dict(siglip.state_dict()), num_heads=4, eps=siglip.config.layer_norm_eps)


def test_saliency_is_the_pooling_attention(siglip, hidden):
    head = siglip.head
    with torch.no_grad():
        normed = siglip.post_layernorm(hidden)
        probe = head.probe.expand(len(hidden), -1, -1)
        _, weights = head.attention(probe, normed, normed, average_attn_weights=True)
    torch.testing.assert_close(head_of(siglip).saliency(hidden), weights[:, 0], rtol=1e-5, atol=1e-7)


def test_frame_embeds_are_the_heads_output(siglip, hidden):
    with torch.no_grad():
        expected = siglip.head(siglip.post_layernorm(hidden))
    torch.testing.assert_close(head_of(siglip).frame_embeds(hidden), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_a_saved_checkpoint(siglip, hidden, tmp_path: Path, sharded):
    siglip.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    read = PoolingHead.from_pretrained(tmp_path)
    assert torch.equal(read.saliency(hidden), head_of(siglip).saliency(hidden))


def test_reads_the_key_names_of_the_published_checkpoint(siglip, hidden, tmp_path: Path):
    """google/siglip-so400m-patch14-384 holds both towers, the vision one under `vision_model.`."""
    siglip.config.save_pretrained(tmp_path)
    tensors = {f"vision_model.{k}": v.contiguous() for k, v in siglip.state_dict().items()}
    save_file({**tensors, "text_model.head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    read = PoolingHead.from_pretrained(tmp_path)
    assert torch.equal(read.saliency(hidden), head_of(siglip).saliency(hidden))


def test_a_checkpoint_without_head_is_refused(tmp_path: Path):
    model = tiny.llava_onevision()
    model.save_pretrained(tmp_path)
    with pytest.raises(tango.UnsupportedModelError, match="no SigLIP attention-pooling head"):
        PoolingHead.from_pretrained(tmp_path)
