"""What holds for every family: keeping all is stock, rows do not see each other, and nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.specifiers import SpecifierSet

import tango
from tango.methods import KeepAllPruner, available_layer_pruners, available_pruners, build_layer_pruner
from tango.models import supported_model_types
from tests import tiny
from tests.families import Family, Picture, Row, Video, all_families, variants

FAMILIES = all_families()
BUILT = {**FAMILIES, **variants()}
GREEDY = {"do_sample": False, "max_new_tokens": 4}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
    "uncached": {"use_cache": False},
    "lookup": {"prompt_lookup_num_tokens": 2},
}
RATIO = {"retention_ratio": 0.25}


@pytest.fixture(scope="module", params=BUILT)
def family(request: pytest.FixtureRequest) -> Family:
    return BUILT[request.param]


@pytest.fixture(scope="module")
def model(family: Family) -> Any:
    return family.model()


def one() -> tuple[Row, ...]:
    return (("Look: ", Video(6, 1), " What?"),)


def padded(family: Family) -> tuple[Row, ...]:
    a, b = family.frames
    return ("A ", Video(a, 1), " why?"), ("And what is in this other one? ", Video(b, 2), " Tell me.")


PROMPTS = {
    "one": lambda _family: one(),
    "padded": padded,
    "several": lambda _family: (
        ("A ", Video(6, 1), " then ", Video(6, 2), " why?"),
        ("What is it? ", Video(6, 3), " Tell me."),
    ),
    "picture": lambda _family: (("See ", Picture(5), " and ", Video(6, 1), " why?"), ("And? ", Video(6, 2), " Well?")),
}


def rows_of(family: Family, prompt: str) -> tuple[Row, ...]:
    if (prompt == "several" and not family.several) or (prompt == "picture" and not family.pictures):
        pytest.skip(f"stock {family.name} does not take this in one call")
    return PROMPTS[prompt](family)


def test_no_family_is_forgotten() -> None:
    assert sorted(FAMILIES) == supported_model_types()


@torch.no_grad()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_keeping_all_is_stock(family: Family, model: Any, prompt: str) -> None:
    if not family.stock_is_right:
        pytest.skip(f"stock {family.name} lays out videos otherwise")
    given = family.inputs(*rows_of(family, prompt))
    seen = given["attention_mask"].bool()
    logits = model(**family.stock(given)).logits[seen]
    expected = {}
    for way, options in WAYS.items():
        if way == "lookup" and len(given["input_ids"]) > 1:
            continue  # stock takes one prompt at a time
        wrong = [family.stock_wrong.get(name, "<0") for name in (way, f"{prompt} {way}")]
        if not any(transformers.__version__ in SpecifierSet(versions) for versions in wrong):
            expected[way] = model.generate(**family.stock(given), **GREEDY, **options)
    with tango.prune(model, KeepAllPruner(), **family.options):
        torch.testing.assert_close(model(**given).logits[seen], logits, rtol=1e-4, atol=1e-4)
        for way, ids in expected.items():
            assert torch.equal(model.generate(**given, **GREEDY, **WAYS[way]), ids), way
    assert float(logits.abs().max()) > 0.3
    assert "greedy" in expected


@torch.no_grad()
def test_pruning_leaves_nothing_behind(family: Family, model: Any) -> None:
    """Stock, A, B, A, stock: the second time as the first, and the modules as they were."""
    given = family.inputs(*padded(family))
    if family.stock_is_right:
        stock = model.generate(**family.stock(given), **GREEDY)  # leaves what stock leaves, such as hooks
    before = state(model)

    def pruned(method: str) -> torch.Tensor:
        with tango.prune(model, method, **RATIO):
            return model.generate(**given, **GREEDY, output_logits=True, return_dict_in_generate=True).logits[0]

    first, other, again = pruned("tango"), pruned("uniform"), pruned("tango")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert state(model) == before
    if family.stock_is_right:
        assert torch.equal(model.generate(**family.stock(given), **GREEDY), stock)


def state(model: Any) -> dict[str, Any]:
    """Hooks, attributes and classes of every module."""
    return {
        name: (
            type(module),
            {key: len(value) if key.endswith("_hooks") else id(value) for key, value in vars(module).items()},
        )
        for name, module in model.named_modules()
    }


@torch.no_grad()
@pytest.mark.parametrize("method", available_pruners())
def test_every_method_prunes(family: Family, model: Any, method: str) -> None:
    """Rows of a padded batch, with videos of unequal length, are what each row alone is."""
    rows = (("A ", Video(6, 1), " why?"), ("And what is in this other one? ", Video(4, 2), " Tell me."))
    given = family.inputs(*rows)
    with tango.prune(model, method, **RATIO) as pruning:
        together = tiny.new_tokens(model, given, model.generate(**given, **GREEDY))
        stats = pruning.stats
        assert stats is not None
        assert [video.tokens_before for video in stats.videos] == family.tokens(*rows)
        assert all(0 < video.tokens_after < video.tokens_before for video in stats.videos)
        assert all(a < b for a, b in zip(stats.prompt_after, stats.prompt_before, strict=True))
        for row, expected in zip(rows, together, strict=True):
            alone = family.inputs(row)
            assert tiny.new_tokens(model, alone, model.generate(**alone, **GREEDY)) == [expected]


@torch.no_grad()
def test_several_videos_and_pictures(family: Family, model: Any) -> None:
    """Every video of a row is pruned on its own, and no picture is."""
    rows = PROMPTS["several"](family)
    given = family.inputs(*rows)
    with tango.prune(model, "tango", **RATIO) as pruning:
        together = tiny.new_tokens(model, given, model.generate(**given, **GREEDY))
        assert pruning.stats is not None
        assert [video.tokens_before for video in pruning.stats.videos] == family.tokens(*rows)
        for row, expected in zip(rows, together, strict=True):
            alone = family.inputs(row)
            assert tiny.new_tokens(model, alone, model.generate(**alone, **GREEDY)) == [expected]
        if not family.pictures:
            return
        mixed = family.inputs(*PROMPTS["picture"](family))
        model.generate(**mixed, **GREEDY)
        lost = [a - b for a, b in zip(pruning.stats.prompt_before, pruning.stats.prompt_after, strict=True)]
        without = family.inputs(("See ", " and ", Video(6, 1), " why?"), ("And? ", Video(6, 2), " Well?"))
        model.generate(**without, **GREEDY)
        assert lost == [a - b for a, b in zip(pruning.stats.prompt_before, pruning.stats.prompt_after, strict=True)]


@torch.no_grad()
def test_pictures_alone_go_to_stock(family: Family, model: Any) -> None:
    if not family.pictures:
        pytest.skip(f"pictures of {family.name} are tested with its own prompts")
    given = family.inputs(("See ", Picture(5), " why?"), ("And what is in this? ", Picture(6), " Well?"))
    expected = model.generate(**family.stock(given), **GREEDY)
    with tango.prune(model, "tango", **RATIO):
        assert torch.equal(model.generate(**given, **GREEDY), expected)


@torch.no_grad()
def test_layer_pruners_run_or_are_refused(family: Family, model: Any) -> None:
    given = family.inputs(*padded(family))
    every = [build_layer_pruner(name, layer=2, retention_ratio=1.0) for name in available_layer_pruners()]
    of_one_layer = [pruner for pruner in every if pruner.layers == (2,)]  # the layers of the others do not fit
    assert len(of_one_layer) >= 5
    if not family.layer_pruners:
        for pruner in of_one_layer:
            with pytest.raises(tango.UnsupportedModelError, match="pruning at a layer"):
                tango.prune(model, KeepAllPruner(), layer_pruner=pruner)
        return
    with tango.prune(model, KeepAllPruner()):
        expected = model(**given).logits
    seen = given["attention_mask"].bool()
    for pruner in of_one_layer:
        with tango.prune(model, KeepAllPruner(), layer_pruner=pruner):
            torch.testing.assert_close(model(**given).logits[seen], expected[seen], rtol=1e-4, atol=1e-4)
    inside = build_layer_pruner("fastv", layer=2, retention_ratio=0.5)
    rows = padded(family)
    with tango.prune(model, KeepAllPruner(), layer_pruner=inside) as pruning:
        together = tiny.new_tokens(model, given, model.generate(**given, **GREEDY))
        assert pruning.stats is not None
        assert pruning.stats.layer is not None
        before, after = pruning.stats.layer.tokens
        assert before >= sum(family.tokens(*rows))  # newlines enter, too
        assert 0 < after < before
        for row, found in zip(rows, together, strict=True):
            alone = family.inputs(row)
            assert tiny.new_tokens(model, alone, model.generate(**alone, **GREEDY)) == [found]
