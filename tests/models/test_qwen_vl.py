"""Pruning on the real Qwen-VL classes: every way of decoding equals an independent reference."""

from __future__ import annotations

import importlib
import threading

import pytest
import torch

import tango
from tango.containers import Signal
from tango.methods import TangoPruner
from tango.models.base import adapter_class
from tango.profiling import StageTimer
from tests import tiny_qwen
from tests.tiny import new_tokens
from tests.tiny_qwen import STILL, TALL, WIDE

NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NEW}
RATIO = {"retention_ratio": 0.4}
ROWS = {
    "one video": [("Look: ", WIDE, " What?")],
    "several of unequal size": [("A ", WIDE, " B ", TALL, " why?"), ("What is in this one? ", TALL, " Tell me.")],
    "image beside videos": [("See ", STILL, " and ", WIDE, " why?"), ("A ", TALL, "?")],
}


@pytest.fixture(scope="module", params=tiny_qwen.ALL)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return tiny_qwen.model(family)


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def rows(request):
    return request.param


def deepstack_of(model, prepared_inputs, pruning, short) -> list[torch.Tensor] | None:
    """Rows (B, S, D) of the stock model's deepstack features for the tokens that are kept; None without deepstack."""
    if not hasattr(model.config.vision_config, "deepstack_visual_indexes"):
        return None
    with torch.no_grad():
        output = model.model.get_video_features(
            prepared_inputs["pixel_values_videos"], prepared_inputs["video_grid_thw"], return_dict=True
        )
        images = None
        if "pixel_values" in prepared_inputs:
            images = model.model.get_image_features(
                prepared_inputs["pixel_values"], prepared_inputs["image_grid_thw"], return_dict=True
            ).deepstack_features
        encoded = pruning.adapter.encode_videos(prepared_inputs, pruning.pruner.wants, StageTimer()).videos
    stays, first = [], 0
    for video in encoded:
        T, N, _ = video.features.shape
        stays += [first + i for i in pruning.pruner(video).indices.tolist()]
        first += T * N
    layers = []
    for i, layer in enumerate(output.deepstack_features):
        flat = layer if isinstance(layer, torch.Tensor) else torch.cat(list(layer))
        rows = torch.zeros_like(short.inputs_embeds)
        rows[short.is_video] = flat[stays]
        if images is not None:
            flat = images[i] if isinstance(images[i], torch.Tensor) else torch.cat(list(images[i]))
            rows[short.input_ids == model.config.image_token_id] = flat
        layers.append(rows)
    return layers


def references(model, inputs: dict, steps: int = NEW) -> list[list[int]]:
    """What each row should generate: the pruned prompt, decoded without cache, padding or `generate`."""
    with tango.prune(model, "tango", **RATIO) as pruning, torch.no_grad():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        deepstack = deepstack_of(model, inputs, pruning, short)
    return [tiny_qwen.greedy_reference(model, short, row, steps, deepstack) for row in range(len(inputs["input_ids"]))]


DECODING = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
def test_generate_equals_reference(family, model, rows, options):
    if "prompt_lookup_num_tokens" in options:
        rows = rows[:1]
        if "qwen3_5" in family:
            pytest.skip("stock refuses: a state cannot take back what it has seen")
    inputs = tiny_qwen.inputs(family, *rows)
    expected = references(model, inputs)
    with tango.prune(model, "tango", **RATIO):
        output = model.generate(**inputs, **GREEDY, **options)
    assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert new_tokens(model, inputs, output) == expected


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_rows_of_a_batch_equal_rows_alone(family, model, options):
    rows = ROWS["several of unequal size"]
    inputs = tiny_qwen.inputs(family, *rows)
    alone = []
    for row in range(len(rows)):
        single = tiny_qwen.one_row(family, inputs, rows, row)
        with tango.prune(model, "tango", **RATIO):
            alone += new_tokens(model, single, model.generate(**single, **GREEDY, **options))
    with tango.prune(model, "tango", **RATIO):
        assert new_tokens(model, inputs, model.generate(**inputs, **GREEDY, **options)) == alone


@pytest.mark.parametrize("positions", ["stock", "correct"])
@pytest.mark.parametrize("method", ["tango", "uniform"])
def test_retention_ratio_one_equals_the_stock_model(family, model, rows, method, positions):
    """With steps of one second these videos are so short that stock positions are right."""
    inputs = tiny_qwen.inputs(family, *rows)
    if positions == "correct":
        rows = [tuple(TALL if part == WIDE else part for part in row) for row in rows]
        inputs = tiny_qwen.inputs(family, *rows)
    stock = model.generate(**tiny_qwen.stock(inputs), **GREEDY)
    with tango.prune(model, method, retention_ratio=1.0, positions=positions) as pruning:
        assert torch.equal(model.generate(**inputs, **GREEDY), stock)
    assert pruning.stats.tokens_before == pruning.stats.tokens_after


def test_all_positions_are_the_stock_models_own(family, model, rows):
    inputs = tiny_qwen.inputs(family, *rows)
    with torch.no_grad():
        stock = model(**tiny_qwen.stock(inputs)).logits
        with tango.prune(model, "tango", retention_ratio=1.0, positions="stock"):
            ours = model(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}).logits
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[seen], stock[seen], rtol=1e-4, atol=1e-4)


def test_features_equal_the_stock_video_features(family, model):
    inputs = tiny_qwen.inputs(family, ("A ", WIDE, " B ", TALL))
    adapter = adapter_class(family)(model)
    with torch.no_grad():
        videos = adapter.encode_videos(inputs, Signal.SALIENCY, StageTimer()).videos
        stock = model.model.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
        ).pooler_output
    assert [video.grid for video in videos] == [(2, 3), (4, 3)]
    for video, features in zip(videos, stock, strict=True):
        assert torch.equal(video.features.flatten(0, 1), features)


def patch_order(grid, side: int | None) -> torch.Tensor:
    """Row-major merge unit and place in it of every patch, in the order of the tower: one (patches,) unit index."""
    t, h, w = grid
    units = torch.arange(h // 2 * w // 2).view(h // 2, w // 2)
    if side is None:
        order = units.flatten()
    else:
        windows = [units[y : y + side, x : x + side] for y in range(0, h // 2, side) for x in range(0, w // 2, side)]
        order = torch.cat([window.flatten() for window in windows])
    return order.repeat_interleave(4).repeat(t)


def eager_weights(model, inputs) -> list[torch.Tensor]:
    """Attention weights (T, heads, P, P) of the last tower block under eager attention, one entry per video."""
    attention, weights = model.model.visual.blocks[-1].attn, []
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def eager(module, query, key, value, *_mask, scaling, **_options):
        probabilities = (query @ key.mT * scaling).softmax(-1)
        if module is attention:
            weights.append(probabilities[0])
        return (probabilities @ value).transpose(1, 2), probabilities

    before = attention.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register("tango_test_eager", eager)
    attention.config._attn_implementation = "tango_test_eager"
    try:
        with torch.no_grad():
            model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
    finally:
        attention.config._attn_implementation = before
    frames, steps = iter(weights), inputs["video_grid_thw"][:, 0].tolist()
    assert len(weights) == sum(steps)  # frame by frame: the block attends to whole frames and to no others
    return [torch.stack([next(frames) for _ in range(t)]) for t in steps]


def test_attn_equals_eager_attention(family, model):
    inputs = tiny_qwen.inputs(family, ("A ", WIDE, " B ", TALL))
    adapter = adapter_class(family)(model, saliency="attn")
    with torch.no_grad():
        videos = adapter.encode_videos(inputs, Signal.SALIENCY, StageTimer()).videos
    for video, weights, grid in zip(videos, eager_weights(model, inputs), (WIDE, TALL), strict=True):
        t, h, w = grid
        received = weights.mean((1, 2))  # (T, P), in the tower's order
        unit = patch_order((1, h, w), 2 if family == "qwen2_5_vl" else None)
        expected = torch.zeros(t, h * w // 4).index_add_(1, unit, received) / 4
        torch.testing.assert_close(video.saliency, expected, rtol=1e-4, atol=1e-6)


def test_p_attn_and_keys_equal_their_definitions(family, model, monkeypatch):
    """Mean query of a frame against the mean key of each unit, from the stock model's own rotated queries and keys."""
    inputs = tiny_qwen.inputs(family, ("A ", WIDE, " B ", TALL))
    with torch.no_grad():
        adapter = adapter_class(family)(model)
        videos = adapter.encode_videos(inputs, Signal.SALIENCY | Signal.KEYS, StageTimer()).videos
    module = importlib.import_module(type(model).__module__)
    stock_rotate, rotated = module.apply_rotary_pos_emb_vision, []

    def rotate(q, k, cos, sin):
        rotated.append(stock_rotate(q, k, cos, sin))
        return rotated[-1]

    monkeypatch.setattr(module, "apply_rotary_pos_emb_vision", rotate)
    with torch.no_grad():
        model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
    (queries, keys), first = rotated[-1], 0  # of the last block: (patches, heads, d)
    for video, (t, h, w) in zip(videos, (WIDE, TALL), strict=True):
        unit = patch_order((1, h, w), 2 if family == "qwen2_5_vl" else None)
        for step in range(t):
            now = slice(first, first + h * w)
            query, key = queries[now].mean(0), keys[now]
            means = torch.stack([key[unit == n].mean(0) for n in range(h * w // 4)], dim=1)  # (heads, N, d)
            expected = (torch.einsum("hd,hnd->hn", query, means) / query.shape[-1] ** 0.5).softmax(-1).mean(0)
            torch.testing.assert_close(video.saliency[step], expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(video.keys[step], means.mean(0), rtol=1e-4, atol=1e-5)
            first += h * w


def test_the_language_model_sees_the_short_prompt(family, model):
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    inputs = tiny_qwen.inputs(family, ("Look: ", WIDE, " What?"))
    with tango.prune(model, "uniform", retention_ratio=0.5) as pruning:
        model.generate(**inputs, **GREEDY)
    hook.remove()
    assert (pruning.stats.tokens_before, pruning.stats.tokens_after) == (18, 9)
    assert pruning.stats.videos[0].grid == (2, 3)
    assert seen[0] == inputs["input_ids"].shape[1] - 9
    assert set(seen[1:]) == {1}
    assert pruning.stats.prompt_after == (seen[0],)


def test_kept_tokens_retain_their_positions(family, model, rows):
    inputs = tiny_qwen.inputs(family, *rows)
    with tango.prune(model, "tango", **RATIO) as pruning, torch.no_grad():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        full = pruning.adapter.positions(inputs["input_ids"], inputs["attention_mask"], inputs)
    assert short.position_ids.shape[0] == 4
    for row, seen in enumerate(short.attention_mask.bool()):
        assert torch.equal(short.position_ids[0, row, seen], torch.arange(int(seen.sum())))
        assert torch.equal(short.position_ids[1:, row, seen], full[:, row, short.kept[row, seen]])


def test_timestamps_reach_the_pruner(family, model, monkeypatch):
    seen = []
    stock_prune = TangoPruner.prune
    monkeypatch.setattr(TangoPruner, "prune", lambda self, tokens: seen.append(tokens) or stock_prune(self, tokens))
    inputs = tiny_qwen.inputs(family, ("A ", WIDE, " B ", TALL, "?"))
    inputs["video_timestamps_s"] = [[0.0, 0.5, 1.0, 1.5, 2.0, 7.0], [3.0, 4.0]]  # per frame, and per grid step
    with tango.prune(model, "tango", **RATIO):
        model.generate(**inputs, **GREEDY)
    assert seen[0].timestamps_s.tolist() == [0.0, 1.25, 7.0]
    assert seen[1].timestamps_s.tolist() == [3.0, 4.0]


def state_of(model) -> dict:
    hooks = {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_with_kwargs))
        for name, m in model.named_modules()
    }
    return {"hooks": hooks, "attributes": {k: id(v) for k, v in model.__dict__.items()}, "class": type(model)}


def test_removal_restores_the_model(family, model):
    before = state_of(model)
    with tango.prune(model, "tango", **RATIO):
        model.generate(**tiny_qwen.inputs(family, *ROWS["image beside videos"]), **GREEDY)
        assert state_of(model) != before
    assert state_of(model) == before


@pytest.mark.parametrize("module", ["model.visual.blocks.3.mlp", "model.language_model.layers.0"])
def test_an_exception_inside_leaves_nothing_behind(family, model, module):
    before = state_of(model)
    inputs = tiny_qwen.inputs(family, *ROWS["one video"])

    def fail(*_args):
        raise RuntimeError("on purpose")

    pruning = tango.prune(model, "tango", **RATIO)
    during = state_of(model)
    hook = model.get_submodule(module).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.generate(**inputs, **GREEDY)
    hook.remove()
    assert state_of(model) == during
    model.generate(**inputs, **GREEDY)
    pruning.remove()
    assert state_of(model) == before


def test_text_passes_through(family, model):
    ids = torch.tensor([tiny_qwen.prompt(family, "Hello there")])
    stock = model.generate(ids, **GREEDY), model(ids).logits
    with tango.prune(model, "tango") as pruning:
        assert torch.equal(model.generate(ids, **GREEDY), stock[0])
        assert torch.equal(model(ids).logits, stock[1])
    assert pruning.stats is None


@pytest.mark.parametrize("saliency", ["p-attn", "attn"])
def test_direct_forward_gives_a_loss_and_gradients(family, saliency):
    model = tiny_qwen.model(family)
    inputs = tiny_qwen.inputs(family, *ROWS["image beside videos"])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[inputs["mm_token_type_ids"] > 0] = -100
    with tango.prune(model, "tango", saliency=saliency, **RATIO) as pruning:
        output = model(**inputs, labels=labels)
        output.loss.backward()
    assert output.logits.shape[:2] == inputs["input_ids"].shape
    assert max(pruning.stats.prompt_after) < inputs["input_ids"].shape[1]
    assert model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
    assert sum(p.grad.abs().sum() for p in model.model.language_model.layers[0].mlp.parameters()) > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_of_a_padded_batch_is_that_of_its_rows(family, model, side):
    rows = ROWS["several of unequal size"]
    both = tiny_qwen.inputs(family, *rows, side=side)

    def loss_of(inputs: dict) -> tuple[float, int]:
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        labels[inputs["mm_token_type_ids"] > 0] = -100
        with tango.prune(model, "tango", **RATIO), torch.no_grad():
            loss = float(model(**inputs, labels=labels).loss)
        return loss, int((labels[:, 1:] != -100).sum())

    alone = [loss_of(tiny_qwen.one_row(family, both, rows, row)) for row in range(2)]
    expected = sum(loss * count for loss, count in alone) / sum(count for _, count in alone)
    assert loss_of(both)[0] == pytest.approx(expected, rel=1e-4)


def test_half_precision(family):
    model = tiny_qwen.model(family).to(torch.bfloat16)
    inputs = tiny_qwen.inputs(family, *ROWS["image beside videos"])
    with tango.prune(model, "tango", **RATIO) as pruning:
        model.generate(**inputs, **GREEDY)
    assert 0 < pruning.stats.tokens_after < pruning.stats.tokens_before


def test_two_threads_with_two_models_keep_their_own_inputs(family):
    models = [tiny_qwen.model(family, seed) for seed in (0, 1)]
    batches = [tiny_qwen.inputs(family, *ROWS[name]) for name in ("image beside videos", "several of unequal size")]

    options = {"output_logits": True, "return_dict_in_generate": True, **GREEDY}

    def work(i: int) -> torch.Tensor:
        with tango.prune(models[i], "tango", **RATIO):
            return models[i].generate(**batches[i], **options).logits[0]

    alone, together = [work(i) for i in (0, 1)], [None, None]
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, work(i))) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


WRONG = {
    "placeholders": ({"input_ids": [("Look", TALL)]}, "placeholders from token"),
    "no grid": ({"video_grid_thw": None}, "video_grid_thw is missing"),
    "another grid": ({"video_grid_thw": torch.tensor([[3, 4, 4]])}, "does not fit 72 patches"),
    "timestamps": ({"video_timestamps_s": [[0.0, 1.0]]}, "video_timestamps_s must hold"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_inputs_say_what_is_wrong(family, model, change, message):
    inputs = {**tiny_qwen.inputs(family, ("Look", WIDE)), **change}
    if "input_ids" in change:
        other = tiny_qwen.inputs(family, *change["input_ids"])
        inputs.update({k: other[k] for k in ("input_ids", "attention_mask")})
    with tango.prune(model, "tango"), pytest.raises(ValueError, match=message):
        model.generate(**inputs, **GREEDY)


def test_unknown_positions_are_refused(model):
    with pytest.raises(tango.TangoError, match="'correct' or 'stock'"):
        tango.prune(model, "tango", positions="right")
