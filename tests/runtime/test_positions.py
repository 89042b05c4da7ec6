"""LLaVA's positions after pruning: counted anew, or kept from the unpruned prompt."""

from __future__ import annotations

import pytest
import torch

import tango
from tests import tiny
from tests.tiny import new_tokens, one_video, three_videos

NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def model():
    model = tiny.llava_onevision(seed=3)
    for layer in model.model.language_model.layers:  # attention that depends on where tokens stand
        layer.self_attn.q_proj.weight.data.mul_(12)
        layer.self_attn.k_proj.weight.data.mul_(12)
    return model


def references(model, inputs: dict) -> list[list[int]]:
    """Greedy decoding without cache or padding; each token stands where the unpruned prompt has it."""
    with tango.prune(model, "tango", retention_ratio=0.3) as pruning, torch.no_grad():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
    rows = []
    for row, attended in enumerate(inputs["attention_mask"].bool()):
        real = short.attention_mask[row].bool()
        number = {column: n for n, column in enumerate(attended.nonzero()[:, 0].tolist())}
        positions = [number[column] for column in short.kept[row, real].tolist()]
        embeds, new = short.inputs_embeds[row : row + 1, real], []
        for step in range(NEW):
            every = torch.tensor([positions + [len(number) + i for i in range(step)]])
            with torch.no_grad():
                token = model(inputs_embeds=embeds, position_ids=every).logits[0, -1].argmax()
            new.append(int(token))
            if new[-1] == model.generation_config.eos_token_id:
                break
            embeds = torch.cat([embeds, model.get_input_embeddings()(token[None, None])], dim=1)
        rows.append(new)
    return rows


DECODING = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 16},
}


def check(model, inputs: dict, options: dict) -> None:
    with tango.prune(model, "tango", retention_ratio=0.3, positions="kept"):
        output = model.generate(**inputs, **GREEDY, **options)
    assert new_tokens(model, inputs, output) == references(model, inputs)


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
@pytest.mark.parametrize("inputs", [one_video, three_videos])
def test_kept_positions_decode_as_the_reference(model, inputs, options):
    check(model, inputs(), options)


def test_kept_positions_in_assisted_decoding(model):
    check(model, one_video(), {"prompt_lookup_num_tokens": 3})


def test_positions_change_what_the_model_says(model):
    """Or the tests above would prove nothing."""
    logits = []
    for positions in ("contiguous", "kept"):
        with tango.prune(model, "tango", retention_ratio=0.3, positions=positions), torch.no_grad():
            logits.append(model(**one_video()).logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_all_tokens_have_the_same_positions_either_way(model):
    inputs = three_videos()
    plain = model.generate(**{k: v for k, v in inputs.items() if k != "video_timestamps_s"}, **GREEDY)
    with tango.prune(model, "tango", retention_ratio=1.0, positions="kept"):
        assert torch.equal(model.generate(**inputs, **GREEDY), plain)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_direct_call_keeps_positions_whatever_the_padding(model, side):
    ids = tiny.prompt("A ", 6, " why?"), tiny.prompt("What is in this one? ", 6, " Tell me.")
    videos = {k: three_videos()[k][:2] for k in ("pixel_values_videos", "video_timestamps_s")}
    with tango.prune(model, "tango", retention_ratio=0.3, positions="kept"), torch.no_grad():
        batch = tiny.batch(*ids, side=side)
        together = model(**batch, **videos).logits
        for row in range(2):
            alone = model(**tiny.batch(ids[row]), **{k: v[row : row + 1] for k, v in videos.items()}).logits
            torch.testing.assert_close(
                together[row, batch["attention_mask"][row].bool()], alone[0], atol=1e-4, rtol=1e-4
            )


def test_a_second_step_inside_the_llm_keeps_them_too(model):
    """With every token left to the second step, it changes nothing."""
    second = tango.build_layer_pruner("fastv-merge", layer=1, retention_ratio=1.0)
    outputs = []
    for inside in (None, second):
        with tango.prune(model, "tango", retention_ratio=0.3, positions="kept", layer_pruner=inside):
            outputs.append(model.generate(**one_video(), **GREEDY))
    assert torch.equal(*outputs)


def test_decoding_without_cache_is_refused(model):
    """transformers would take every gap for the start of another prompt."""
    with tango.prune(model, "uniform", positions="kept"), pytest.raises(tango.OptionError, match="needs the cache"):
        model.generate(**one_video(), **GREEDY, use_cache=False)


def test_flash_attention_in_chunks_is_refused(model, monkeypatch):
    """Nothing is computed with it: the refusal comes first."""
    monkeypatch.setattr(model.config.get_text_config(), "_attn_implementation_internal", "flash_attention_2")
    with tango.prune(model, "uniform", positions="kept"), pytest.raises(tango.OptionError, match="in one piece"):
        model.generate(**one_video(), **GREEDY, prefill_chunk_size=16)


def test_unknown_positions_are_refused(model):
    with pytest.raises(tango.OptionError, match="LLaVA-OneVision must be 'contiguous' or 'kept', got 'stock'"):
        tango.prune(model, "uniform", positions="stock")
