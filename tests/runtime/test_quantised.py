"""Models with 4-bit and 8-bit weights: what is kept and said is the quantised stock model's own.

The packages are no requirements of Tango's. `pip install bitsandbytes torchao` beside it, and nothing is skipped here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

import tango
from tango.toy import write_checkpoint
from tests import tiny
from tests.families import Family, Video, all_families

pytestmark = pytest.mark.filterwarnings("ignore")  # of those packages
GREEDY = {"do_sample": False, "max_new_tokens": 5}
# torchao's 4-bit weights need a kernel package that runs on GPUs alone.
WEIGHTS = ("bitsandbytes 4-bit", "bitsandbytes 8-bit", "torchao 8-bit", "torchao 8-bit, inputs too")


def settings(weights: str) -> Any:
    """The quantisation that `from_pretrained` takes; skips where its package is missing."""
    package = weights.partition(" ")[0]
    pytest.importorskip(package, reason=f"needs {package}, which is not installed")
    if weights == "bitsandbytes 4-bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    if weights == "bitsandbytes 8-bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    return TorchAoConfig(Int8DynamicActivationInt8WeightConfig() if "inputs" in weights else Int8WeightOnlyConfig())


@pytest.fixture(scope="module", params=["llava_onevision", "llava_next_video", "qwen2_5_vl", "qwen3_vl"])
def family(request: pytest.FixtureRequest) -> Family:
    return all_families()[request.param]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(family.name)
    family.model().save_pretrained(path)
    return path


@pytest.mark.parametrize("weights", WEIGHTS)
def test_keeping_all_equals_the_quantised_stock_model(family: Family, folder: Path, weights: str) -> None:
    """The projector must see its input as in stock code: 8-bit layers round theirs, so no sum may move past them."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=settings(weights), dtype=torch.float32
    ).eval()
    assert {type(p).__name__ for p in model.model.language_model.layers.parameters()} > {"Parameter"}
    inputs = family.inputs(("Look: ", Video(6, 1), " What?"))
    stock = family.stock(inputs)
    seen = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = model.generate(**stock, **GREEDY), model(**stock).logits[seen]
        with tango.prune(model, "uniform", retention_ratio=1.0, **family.options):
            assert torch.equal(model.generate(**inputs, **GREEDY), expected[0])
            ours = model(**{name: x for name, x in inputs.items() if name != "mm_token_type_ids"}).logits[seen]
        torch.testing.assert_close(ours, expected[1], rtol=1e-3, atol=1e-3)
        for method, options in (("tango", {}), ("visionzip", {}), ("fastv", {"layer": 2, "retention_ratio": 0.8})):
            with tango.prune(model, method, saliency="attn", **{"retention_ratio": 0.25, **options}) as pruning:
                model.generate(**inputs, **GREEDY)
            left = pruning.stats.layer.tokens[-1] if pruning.stats.layer else pruning.stats.tokens_after
            assert 0 < left < pruning.stats.tokens_before
        assert torch.equal(model.generate(**stock, **GREEDY), expected[0])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_quantised_checkpoint_is_loaded_and_asked(weights: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, image_size=tiny.IMAGE_SIZE, width=32)
    model, processor = tango.load(tmp_path, device="cpu", quantization_config=settings(weights))
    frames = torch.zeros(4, 60, 80, 3, dtype=torch.uint8)
    stock = tango.answer(model, processor, frames, "What?", max_new_tokens=4)
    with tango.prune(model, "tango", retention_ratio=1.0):
        assert tango.answer(model, processor, frames, "What?", max_new_tokens=4) == stock
    with tango.prune(model, "tango", retention_ratio=0.3) as pruning:
        tango.answer(model, processor, frames, "What?", max_new_tokens=4)
    assert pruning.stats.tokens_after < pruning.stats.tokens_before
