"""`images=True`: an image is pruned as a video of one frame, where that is exact and by methods that need no time."""

from __future__ import annotations

import pytest
import torch

import tango
from tango.errors import NotFiniteError
from tango.evaluation import MethodConfig
from tango.methods import Plan, build_pruner, ready_pruners
from tango.models.base import families_that_prune_images
from tango.models.calls import cache_argument, cache_of
from tests import tiny, tiny_qwen
from tests.families import Picture, Video, all_families
from tests.tiny import new_tokens
from tests.tiny_qwen import STILL, TALL

GREEDY = {"do_sample": False, "max_new_tokens": 5}
HIGH = (1, 8, 4)  # another image: 4 x 2 tokens
# Videos so short that stock positions are right (see tests/models/test_qwen_vl.py).
ROWS = {
    "one image": [("Look: ", STILL, " What?")],
    "several images": [("A ", STILL, " B ", HIGH, " why?"), ("What is in this one? ", HIGH, " Tell me.")],
    "image beside videos": [("See ", STILL, " and ", TALL, " why?"), ("A ", TALL, " B ", HIGH, "?")],
    "video alone, images alone": [("A ", TALL, "?"), ("B ", HIGH, STILL, " or not?")],
}
TIMELESS = [name for name in ready_pruners() if not build_pruner(name).about_time]


@pytest.fixture(scope="module", params=tiny_qwen.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return tiny_qwen.model(family)


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def rows(request):
    return request.param


def generated(model, inputs: dict, **options) -> list[list[int]]:
    return new_tokens(model, inputs, model.generate(**inputs, **GREEDY, **options))


@torch.no_grad()
def logits(model, inputs: dict) -> torch.Tensor:
    seen = inputs["attention_mask"].bool()
    return model(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}).logits[seen]


DECODING = {"greedy": {}, "beams": {"num_beams": 3}, "no cache": {"use_cache": False}}
DECODING["static cache"] = {"cache_implementation": "static"}


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
def test_keeping_all_equals_the_stock_model(family, model, rows, options):
    inputs = tiny_qwen.inputs(family, *rows)
    stock = generated(model, tiny_qwen.stock(inputs), **options)
    with tango.prune(model, "uniform", retention_ratio=1.0, images=True) as pruning:
        assert generated(model, inputs, **options) == stock
    images = [part for row in rows for part in row if not isinstance(part, str) and part[0] == 1]
    assert [image.tokens_after for image in pruning.stats.images] == [h * w // 4 for _, h, w in images]
    assert generated(model, tiny_qwen.stock(inputs), **options) == stock


def test_keeping_all_gives_the_stock_models_logits(family, model, rows):
    inputs = tiny_qwen.inputs(family, *rows)
    seen = inputs["attention_mask"].bool()
    with torch.no_grad():
        stock = model(**tiny_qwen.stock(inputs)).logits[seen]
    with tango.prune(model, "uniform", retention_ratio=1.0, images=True):
        torch.testing.assert_close(logits(model, inputs), stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", TIMELESS)
def test_rows_of_a_batch_equal_rows_alone(family, model, method):
    rows = ROWS["video alone, images alone" if method in ("uniform", "visionzip") else "image beside videos"]
    inputs = tiny_qwen.inputs(family, *rows)
    with tango.prune(model, method, retention_ratio=0.25, saliency="attn", images=True) as pruning:
        together, stats = generated(model, inputs), pruning.stats
        alone, images = [], []
        for row in range(len(rows)):
            alone += generated(model, tiny_qwen.one_row(family, inputs, rows, row))
            images += pruning.stats.images
    assert together == alone
    assert [image.tokens_after for image in stats.images] == [image.tokens_after for image in images]
    assert all(image.tokens_after < image.tokens_before for image in images)
    assert stats.tokens_before == sum(size.tokens_before for size in (*stats.videos, *stats.images))
    assert stats.to_dict()["images"][0]["frames"] == 1


def test_kept_tokens_are_stock_features_at_their_own_positions(family, model):
    """Against greedy decoding by hand of a prompt cut by hand, deepstack features included."""
    rows = [("Look: ", STILL, " and ", HIGH, " What?")]
    inputs = tiny_qwen.inputs(family, *rows)
    ids = inputs["input_ids"][0]
    with tango.prune(model, "uniform", retention_ratio=0.5, images=True) as pruning, torch.no_grad():
        ours = generated(model, inputs)
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        positions = pruning.adapter.positions(inputs["input_ids"], None, inputs)
        output = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    kept = torch.tensor([1, 3, 5, 7, 9, 11, 13, 15])  # every second token of 2 x 4 and of 4 x 2
    places = (ids == model.config.image_token_id).nonzero()[:, 0]
    columns = torch.cat([places[kept], (ids != model.config.image_token_id).nonzero()[:, 0]]).sort().values
    is_image = torch.isin(columns, places)
    assert torch.equal(short.kept[0], columns)
    assert torch.equal(short.inputs_embeds[0, is_image], torch.cat(list(output.pooler_output))[kept])
    assert torch.equal(short.position_ids[1:, 0], positions[:, 0, columns])
    deepstack = None
    if hasattr(output, "deepstack_features"):
        deepstack = []
        for layer in output.deepstack_features:
            features = layer if isinstance(layer, torch.Tensor) else torch.cat(list(layer))
            deepstack.append(
                torch.zeros_like(short.inputs_embeds).masked_scatter(is_image[None, :, None], features[kept])
            )
    assert ours[0] == tiny_qwen.greedy_reference(model, short, 0, 5, deepstack)[: len(ours[0])]


@pytest.mark.parametrize("layer_pruner", ["dart", "fastv", "fastv-merge", "framefusion", "prunevid-select"])
def test_layer_pruners_count_images_among_the_visual_tokens(family, model, layer_pruner):
    rows = ROWS["image beside videos"]
    inputs = tiny_qwen.inputs(family, *rows)
    with tango.prune(model, layer_pruner, layer=2, retention_ratio=0.8, images=True) as pruning:
        together, stats = generated(model, inputs), pruning.stats
        alone = [generated(model, tiny_qwen.one_row(family, inputs, rows, row))[0] for row in range(2)]
    assert together == alone
    assert stats.layer.tokens[0] == stats.tokens_before == 64
    assert stats.layer.tokens[-1] < 64


def test_images_are_kept_unless_asked_for(family, model):
    inputs = tiny_qwen.inputs(family, *ROWS["image beside videos"])
    only = tiny_qwen.inputs(family, *ROWS["several images"])
    stock = generated(model, tiny_qwen.stock(only))
    with tango.prune(model, "uniform", retention_ratio=0.25) as pruning:
        generated(model, inputs)
        stats = pruning.stats
        assert generated(model, tiny_qwen.stock(only)) == stock
    assert stats.images == ()
    assert "images" not in stats.to_dict()
    assert stats.tokens_before == 48
    assert sum(stats.prompt_before) - sum(stats.prompt_after) == 48 - stats.tokens_after


def test_the_question_about_an_image(family, model, monkeypatch):
    seen = []
    pruner = build_pruner("cdpruner", retention_ratio=0.5)
    stock = type(pruner).prune
    monkeypatch.setattr(type(pruner), "prune", lambda self, tokens: seen.append(tokens) or stock(self, tokens))
    with tango.prune(model, pruner, images=True):
        generated(model, tiny_qwen.inputs(family, ("See ", STILL, " and ", TALL, " why?"), (HIGH, " or not?")))
    sizes = {tokens.grid: tokens.text for tokens in seen}  # the text after the image, marks and placeholders left out
    embed = model.get_input_embeddings()

    def rows(*words):
        return torch.cat([embed(torch.tensor(tiny_qwen.prompt(family, text))) for text in words]).detach()

    assert torch.equal(sizes[(4, 2)], rows(" or not?"))
    assert torch.equal(sizes[(4, 3)], rows(" why?"))
    if family != "qwen3_vl":  # there the video's own times stand between
        assert torch.equal(sizes[(2, 4)], rows(" and ", " why?"))


def test_placeholders_of_images_may_not_pass_unpruned(family, model):
    inputs = tiny_qwen.inputs(family, *ROWS["one image"])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with tango.prune(model, "uniform", images=True):
        for call in (lambda: model.generate(**text, **GREEDY), lambda: model(**text)):
            with pytest.raises(tango.TangoError, match=r"without the pruned video \(or image\)"):
                call()
    with tango.prune(model, "uniform"):
        model(**text)


def test_a_cache_with_a_pruned_image_belongs_to_its_prompt(family, model):
    inputs = tiny_qwen.inputs(family, *ROWS["one image"])
    other = {name: x for name, x in tiny_qwen.inputs(family, ("Look there", HIGH)).items() if "video" not in name}
    with tango.prune(model, "uniform", retention_ratio=0.5, images=True):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([tiny_qwen.prompt(family, " And?")])], dim=1)
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = model.generate(**longer, **GREEDY)
        held = {cache_argument(model): cache_of(first)}
        assert torch.equal(model.generate(**longer, **GREEDY, **held), expected)
        with pytest.raises(tango.TangoError, match="holds a pruned prompt"):
            model.generate(**other, **GREEDY, **held)


def test_wrong_inputs_say_what_is_wrong(family, model):
    inputs = tiny_qwen.inputs(family, *ROWS["image beside videos"])
    with tango.prune(model, "uniform", images=True):
        with pytest.raises(ValueError, match=r"image_grid_thw \[\[1, 4, 4\], \[1, 8, 4\]\] does not fit 64 patches"):
            model.generate(**{**inputs, "image_grid_thw": torch.tensor([[1, 4, 4], [1, 8, 4]])}, **GREEDY)
        broken = inputs["pixel_values"].clone()
        broken[-1] = float("nan")
        with pytest.raises(NotFiniteError, match="features of image 1"):
            model.generate(**{**inputs, "pixel_values": broken}, **GREEDY)
        missing = {name: x for name, x in inputs.items() if name not in ("pixel_values", "image_grid_thw")}
        with pytest.raises(ValueError, match="image"):
            model.generate(**missing, **GREEDY)


def test_an_image_among_the_frames_of_a_video_is_refused():
    inputs = tiny_qwen.inputs("qwen3_vl", ("See ", TALL, STILL, "?"))
    ids = inputs["input_ids"][0].tolist()
    image = tiny_qwen.prompt("qwen3_vl", STILL)
    step = tiny_qwen.prompt("qwen3_vl", "<1.5 seconds>")
    text = [ids[i : i + len(image)] for i in range(len(ids))]
    at = text.index(image)
    rest = ids[:at] + ids[at + len(image) :]
    between = next(i for i in range(len(rest)) if rest[i : i + len(step)] == step)
    moved = rest[:between] + image + rest[between:]
    inputs["input_ids"] = torch.tensor([moved])
    model = tiny_qwen.model("qwen3_vl")
    with (
        tango.prune(model, "uniform", images=True),
        pytest.raises(ValueError, match="an image stands among the placeholders of one video"),
    ):
        model.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("method", ["tango", "tango-paper", "evs", "fewer-frames", "dycoke"])
def test_methods_about_time_are_refused(model, method):
    with pytest.raises(tango.OptionError, match=rf"{method} .*images are not about time; leave out images=True"):
        tango.prune(model, method, images=True)


def test_tango_needs_no_time_without_seconds(family, model):
    inputs = tiny_qwen.inputs(family, *ROWS["image beside videos"])
    with pytest.raises(tango.OptionError, match="unless rope is 'frames' or 'none'"):
        Plan.of("tango", images=True)
    with tango.prune(model, "tango", retention_ratio=0.25, rope="frames", exact_budget=True, images=True) as pruning:
        generated(model, inputs)
    assert [image.tokens_after for image in pruning.stats.images] == [2, 2]


def test_tower_methods_are_refused():
    with pytest.raises(tango.OptionError, match="earlytom-frames merges frames, and images are not about time"):
        Plan.of("uniform", tower="earlytom-frames", images=True)


@pytest.mark.parametrize("build", [tiny.llava_onevision, tiny.llava_video, tiny.llava_next_video])
def test_families_that_lay_out_images_otherwise_are_refused(build):
    with pytest.raises(tango.UnsupportedModelError, match=r"LLaVA.* adapter does not know; it works with .*qwen2_5_vl"):
        tango.prune(build(), "uniform", images=True)


@pytest.mark.parametrize("name", families_that_prune_images())
def test_every_family_that_can(name):
    """One that inherits it must be exact, too."""
    own = all_families()[name]
    model = own.model()
    rows = (("A ", Picture(1), " B ", Picture(2), " why?"), ("See ", Video(4, 3), Picture(4), " Tell me."))
    for given in (own.inputs(rows[0]), own.inputs(*rows)):
        stock = model.generate(**own.stock(given), **GREEDY)
        with tango.prune(model, "uniform", retention_ratio=1.0, images=True, **own.options) as pruning:
            assert torch.equal(model.generate(**given, **GREEDY), stock)
        assert len(pruning.stats.images) == (2 if len(given["input_ids"]) == 1 else 3)
    for method in ("uniform", "divprune", "visionzip"):
        with tango.prune(model, method, retention_ratio=0.25, images=True, **own.options) as pruning:
            together = generated(model, own.inputs(*rows))
            assert all(image.tokens_after < image.tokens_before for image in pruning.stats.images)
            assert together == [generated(model, own.inputs(row))[0] for row in rows]


def test_labels_and_settings():
    given = {"method": "uniform", "retain_ratio": "0.25", "images": "on"}
    config = MethodConfig.from_settings(given)
    assert config.plan.images
    assert config.label == "uniform-r0.25-images"
    assert config.to_dict()["images"] is True
    assert MethodConfig(**config.to_dict()).label == config.label
    plain = MethodConfig.from_settings({**given, "images": "off"})
    assert not plain.plan.images
    assert plain.label == "uniform-r0.25"
    assert "images" not in plain.to_dict()
    with pytest.raises(tango.OptionError, match=r"'none' keeps all tokens; leave out .*images"):
        MethodConfig(images=True)
