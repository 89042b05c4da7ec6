"""Windows and frames of one length in one call: the stock tower's bits, few calls, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

import tango
from tango.models import packed_attention as module
from tango.models.base import adapter_class
from tango.models.packed_attention import Packing, packed_attention
from tango.ops.llm_shapes import llm_of
from tests import tiny_qwen

GRIDS = {
    "equal windows": [(3, 4, 8)],
    "ragged windows": [(3, 6, 10)],
    "several sizes": [(2, 6, 10), (3, 8, 6), (1, 4, 8)],
    "one window": [(1, 4, 4)],
}


@pytest.fixture(scope="module", params=tiny_qwen.ALL)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request: pytest.FixtureRequest, family: str) -> Any:
    return tiny_qwen.model(family).to(request.param)


def tower_outputs(model: Any, grids: list[tuple[int, int, int]]) -> list[torch.Tensor]:
    pixels = torch.cat([tiny_qwen.pixels(model.config.model_type, grid, seed) for seed, grid in enumerate(grids)])
    with torch.no_grad():
        output = model.model.visual(pixels.to(model.dtype), grid_thw=torch.tensor(grids))
    return [output.last_hidden_state, output.pooler_output, *getattr(output, "deepstack_features", [])]


@contextmanager
def scope(model: Any) -> Iterator[None]:
    with adapter_class(model.config)(model).tower_scope():
        yield


def assert_same_bits(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y), float((x - y).abs().max())


@contextmanager
def counting_calls() -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the queries of every call of SDPA."""
    shapes: list[tuple[int, ...]] = []
    original = nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append(tuple(query.shape))
        return original(query, *args, **kwargs)

    with mock.patch.object(nn.functional, "scaled_dot_product_attention", counted):
        yield shapes


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_the_bits_are_those_of_the_stock_tower(model: Any, grids: list[tuple[int, int, int]]) -> None:
    stock = tower_outputs(model, grids)
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    with scope(model):
        assert_same_bits(stock, tower_outputs(model, grids))
    assert_same_bits(stock, tower_outputs(model, grids))
    for name, part in model.named_modules():
        assert vars(part).keys() == before[name].keys()
        assert not part._forward_pre_hooks


def test_a_block_makes_one_call_per_length(family: str) -> None:
    model = tiny_qwen.model(family)
    for grids, frames, windows in ((GRIDS["equal windows"], 1, 1), (GRIDS["ragged windows"], 1, 3)):
        with counting_calls() as stock:
            tower_outputs(model, grids)
        with scope(model), counting_calls() as ours:
            tower_outputs(model, grids)
        windowed = 2 if family == "qwen2_5_vl" else 0  # of 4 blocks
        assert len(ours) == windowed * windows + (4 - windowed) * frames < len(stock)
        volume = [sum(b * n * n for b, _, n, _ in shapes) for shapes in (stock, ours)]
        assert volume[0] == volume[1]


def test_eager_attention_is_stock_codes_own(family: str) -> None:
    model = tiny_qwen.model(family)
    model.set_attn_implementation("eager")
    stock = tower_outputs(model, GRIDS["several sizes"])
    with scope(model):
        assert_same_bits(stock, tower_outputs(model, GRIDS["several sizes"]))


def test_flash_attention_gets_ragged_rows_and_their_longest(family: str) -> None:
    """Its kernels are not here: a function of the same name notes what they would get."""
    model = tiny_qwen.model(family)
    calls: dict[bool, list[Any]] = {False: [], True: []}
    inside = False

    def flash(_module: Any, query: torch.Tensor, *_args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        calls[inside].append([kwargs["cu_seq_lens_q"].tolist(), kwargs["max_length_q"]])
        return query.transpose(1, 2), None

    model.model.visual.config._attn_implementation_internal = "flash_attention_2"
    with mock.patch.dict(module.ALL_ATTENTION_FUNCTIONS._local_mapping, flash_attention_2=flash):
        tower_outputs(model, GRIDS["ragged windows"])
        with scope(model):
            inside = True
            tower_outputs(model, GRIDS["ragged windows"])
    assert calls[True] == calls[False]
    assert len(calls[True]) == 4


def test_the_attention_may_change_while_the_model_is_pruned(family: str) -> None:
    model = tiny_qwen.model(family)
    with scope(model), counting_calls() as shapes:
        tower_outputs(model, GRIDS["equal windows"])
        model.set_attn_implementation("eager")
        count = len(shapes)
        tower_outputs(model, GRIDS["equal windows"])
        assert len(shapes) == count > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_images_and_videos_of_a_pruned_model_take_this_way(family: str, side: str) -> None:
    """Also where all tokens are kept, and where there is no video at all."""
    model = tiny_qwen.model(family)
    inputs = tiny_qwen.inputs(family, ("Look: ", tiny_qwen.WIDE, tiny_qwen.STILL, " What?"), side=side)
    alone = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad(), counting_calls() as stock:
        expected = model.model.get_image_features(**alone, return_dict=True).pooler_output
        model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
    with tango.prune(model, "none"), torch.no_grad():
        with counting_calls() as ours:
            found = model.model.get_image_features(**alone, return_dict=True).pooler_output
            model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
        with counting_calls() as generated:
            model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False)
    assert_same_bits([torch.cat(list(expected))], [torch.cat(list(found))])
    assert len(ours) < len(stock)
    assert len(generated) == len(ours) + len(llm_of(model.config).attention_layers)


def test_gradients_flow(family: str) -> None:
    model = tiny_qwen.model(family)
    gradients = []
    for inside in (False, True):
        pixels = tiny_qwen.pixels(family, (2, 6, 10), 0).requires_grad_()
        with scope(model) if inside else mock.MagicMock():
            model.model.visual(pixels, grid_thw=torch.tensor([(2, 6, 10)])).pooler_output.square().sum().backward()
        gradients.append(pixels.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 0


def test_a_forward_that_was_replaced_before_comes_back() -> None:
    model = tiny_qwen.model("qwen2_vl")
    attention = model.model.visual.blocks[0].attn
    calls = []

    def hooked(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return type(attention).forward(attention, *args, **kwargs)

    attention.forward = hooked
    with scope(model):
        tower_outputs(model, GRIDS["one window"])
    assert attention.forward is hooked
    tower_outputs(model, GRIDS["one window"])
    assert len(calls) == 1


def test_packings() -> None:
    assert Packing.of([0, 4, 8], torch.device("cpu")) == Packing(((2, 4),))
    assert Packing.of([0, 4, 6, 7], torch.device("cpu")) == Packing(((1, 4), (1, 2), (1, 1)))
    ragged = Packing.of([0, 1, 4, 5, 8], torch.device("cpu"))
    assert ragged.groups == ((2, 3), (2, 1))
    assert ragged.order.tolist() == [1, 2, 3, 5, 6, 7, 0, 4]
    rows = torch.arange(8.0).view(8, 1, 1)
    means = ragged.attend(lambda x: x.mean(2, keepdim=True).expand_as(x).transpose(1, 2), rows)
    assert means.flatten().tolist() == [0, 2, 2, 2, 4, 6, 6, 6]


def test_what_is_no_packing_goes_to_stock_code() -> None:
    model = tiny_qwen.model("qwen2_vl")
    tower = model.model.visual
    grid = torch.tensor([(2, 4, 4)])
    made = adapter_class(model.config)(model).tower_inputs(grid)
    with (
        packed_attention(tower, [b.attn for b in tower.blocks], lambda _: {}),
        counting_calls() as shapes,
        torch.no_grad(),
    ):
        tower(tiny_qwen.pixels("qwen2_vl", (2, 4, 4), 0), grid_thw=grid, **made)
    assert len(shapes) == 2 * len(tower.blocks)
