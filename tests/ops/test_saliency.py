"""Saliency by name: what is registered reaches every family, what is not is refused by name on every family."""

from __future__ import annotations

import pytest
import torch

import tango
from tango.containers import ALL_SIGNALS, Signal, VisualTokens
from tango.models import adapter_class
from tango.ops import saliency as module
from tango.ops.saliency import TowerBlock, block_signals
from tango.profiling import StageTimer
from tests.models.test_base import MODELS, inputs_of


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SALIENCY", dict(module._SALIENCY))


def block(**changes: object) -> TowerBlock:
    """Two frames of 2 x 4 patches, four of which make a token; one head."""
    generator = torch.Generator().manual_seed(0)
    states = {name: torch.randn(2, 1, 9 if "cls" in changes else 8, 3, generator=generator) for name in "qk"}
    settings: dict[str, object] = {
        "grid": (1, 2),
        "hidden": torch.randn(2, 8, 3, generator=generator),
        "project": states.__getitem__,
        "scale": 0.5,
        "pool": lambda x: x.unflatten(1, (2, 4)).mean(2),
        "pooling_query": "mean",
        **changes,
    }
    return TowerBlock(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_name_is_refused_by_name_on_every_family(name: str) -> None:
    with pytest.raises(tango.UnknownNameError, match=r"unknown saliency 'atn'\. Did you mean 'attn'.*attn, p-attn"):
        tango.prune(MODELS[name](), "tango", saliency="atn")


@pytest.mark.filterwarnings("ignore:no video_timestamps_s")
@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("name", MODELS)
def test_a_new_one_reaches_every_family(name: str) -> None:
    @tango.register_saliency("rows")
    def rows(block: TowerBlock) -> torch.Tensor:
        """The row of a token: what the tower holds in another order must come out row-major."""
        (H, W), T = block.grid, len(block.hidden)
        assert block.queries.shape == block.keys.shape
        assert block.queries.shape[2] == block.hidden.shape[1] + block.prefix
        assert block.pool(block.hidden).shape[1] == H * W
        return torch.arange(H).repeat_interleave(W).expand(T, -1)

    assert "rows" in tango.available_saliency()
    model = MODELS[name]()
    adapter = adapter_class(name)(model, saliency="rows")
    with torch.no_grad():
        videos = adapter.encode_videos(inputs_of(name), Signal.SALIENCY, StageTimer()).videos
    for video in videos:
        H, W = video.grid
        assert video.saliency is not None
        assert video.saliency.dtype == torch.float32
        assert video.saliency.view(-1, H, W)[..., 0].tolist() == [list(range(H))] * len(video.features)
    with tango.prune(model, "tango", saliency="rows") as pruning:
        model.generate(**inputs_of(name), max_new_tokens=1, do_sample=False)
        assert pruning.stats is not None


@pytest.mark.usefixtures("registry")
def test_a_wrong_shape_is_refused_by_name() -> None:
    tango.register_saliency("per-patch")(lambda block: block.hidden.norm(dim=-1))
    with pytest.raises(tango.OptionError, match=r"saliency 'per-patch' must return \(T, N\) = \(2, 2\), got \(2, 8\)"):
        block_signals(block(), Signal.SALIENCY, "per-patch")


@pytest.mark.usefixtures("registry")
def test_names_are_words_and_stand_for_one() -> None:
    with pytest.raises(ValueError, match="'attn' is already registered by mean_attention"):
        tango.register_saliency("attn")
    with pytest.raises(ValueError, match="lower-case words"):
        tango.register_saliency("My Saliency")


def test_the_pooling_query_may_be_the_cls_token() -> None:
    """By hand: weights of its row, without the CLS token itself."""
    made = block(cls=torch.zeros(2, 3), pooling_query="cls")
    weights = (made.queries[:, 0, 0, None] @ made.keys[:, 0].mT * 0.5)[:, 0].softmax(-1)
    expected = weights[:, 1:].unflatten(1, (2, 4)).mean(-1)
    signals = block_signals(made, ALL_SIGNALS, "p-attn")
    torch.testing.assert_close(signals["saliency"], expected)
    assert signals["frame_embeds"] is made.cls
    torch.testing.assert_close(signals["keys"], made.keys[:, 0, 1:].unflatten(1, (2, 4)).mean(2))


def test_a_head_that_is_not_there_is_named() -> None:
    with pytest.raises(tango.MissingSignalError, match="needs SigLIP's attention-pooling head"):
        block_signals(block(pooling_query="head"), Signal.SALIENCY, "p-attn")


def test_each_signal_says_its_field_and_shape() -> None:
    sizes = {"T": 2, "N": 3, "D": 4, "P": 5, "d": 7, "Q": 6}
    made = {kind.field: torch.ones(*(sizes[letter] for letter in kind.shape)) for kind in ALL_SIGNALS.kinds}
    tokens = VisualTokens(features=torch.ones(2, 3, 4), grid=(1, 3), **made)
    assert all(getattr(tokens, field) is made[field] for field in ALL_SIGNALS.fields)
    for field in ALL_SIGNALS.fields:
        with pytest.raises(ValueError, match=f"{field} must have shape"):
            VisualTokens(features=torch.ones(2, 3, 4), grid=(1, 3), **{**made, field: made[field][None]})
    assert (Signal.KEYS | Signal.SALIENCY).fields == ["saliency", "keys"]
    assert Signal.NONE.kinds == []
