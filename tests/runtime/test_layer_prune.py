"""Intra-LLM pruning: every way of decoding equals plain loops without hooks (`tests/layer_oracle.py`)."""

from __future__ import annotations

import threading
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    AutoModel,
    Glm4Config,
    Glm4vMoeTextConfig,
    Glm4vTextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2_5_VLTextConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3VLTextConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

import tango
from tango.methods import build_layer_pruner
from tango.methods.fastv_merge import FastvMergePruner
from tango.runtime.layer_prune import layer_pruning
from tests import layer_oracle, tiny
from tests.runtime.test_pruning import GREEDY, NEW, TIMES, new_tokens, one_video, state_of, three_videos

INSIDE = FastvMergePruner(layer=2, retention_ratio=0.4)
BEFORE = {"method": "tango", "retention_ratio": 0.5}


@pytest.fixture(scope="module")
def model():
    return tiny.llava_onevision()


def equal_lengths() -> dict:
    """Rows of one length but with different numbers of visual tokens, so that no mask is needed before the layer."""
    text = "What? And why, then?"
    more = "x" * (round(0.5 * 6 * 16) - round(0.5 * 3 * 16))
    inputs = tiny.batch(tiny.prompt(6, text), tiny.prompt(more, 3, text), side="left")
    clips = [tiny.clip(5, 6), tiny.clip(6, 3)]
    return {**inputs, "pixel_values_videos": clips, "video_timestamps_s": [TIMES[0], TIMES[0][:3]]}


def repetitive() -> dict:
    return {**one_video(), **tiny.batch(tiny.prompt("What? What? What? ", 6, " What? What?"))}


def with_text_row() -> dict:
    return {**one_video(), **tiny.batch(tiny.prompt("Hi, you"), tiny.prompt("Look: ", 6, " What?"))}


def short_of(model, inputs: dict, before: dict = BEFORE):
    with tango.prune(model, **before) as pruning, torch.no_grad():
        return pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short


@cache
def references(make_inputs, inside=INSIDE, before: str = "tango") -> list[list[int]]:
    """Greedy ids of every row alone, by plain loops."""
    model, inputs = tiny.llava_onevision(), make_inputs()
    short = short_of(model, inputs, {"method": before, "retention_ratio": 0.5})
    rows = [layer_oracle.greedy(model, short, row, inside, NEW) for row in range(len(inputs["input_ids"]))]
    pad = model.generation_config.pad_token_id
    return [[token for token in row if token != pad] for row in rows]


def generate(model, inputs: dict, inside=INSIDE, before: dict = BEFORE, **options):
    with tango.prune(model, **before, layer_pruner=inside) as pruning:
        output = model.generate(**inputs, **GREEDY, **options)
    return new_tokens(model, inputs, output), pruning.stats


def alone(inputs: dict, row: int, videos: slice) -> dict:
    attended = inputs["attention_mask"][row].bool()
    single = {k: inputs[k][row : row + 1, attended] for k in ("input_ids", "attention_mask")}
    return {**single, **{k: inputs[k][videos] for k in ("pixel_values_videos", "video_timestamps_s")}}


DECODING = {"dynamic": {}, "static": {"cache_implementation": "static"}, "no cache": {"use_cache": False}}


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
@pytest.mark.parametrize("make_inputs", [one_video, three_videos])
@pytest.mark.parametrize("noncausal", [False, True])
def test_generate_equals_the_oracle(model, make_inputs, options, noncausal):
    inside = FastvMergePruner(layer=2, retention_ratio=0.4, noncausal_layer=noncausal)
    assert generate(model, make_inputs(), inside, **options)[0] == references(make_inputs, inside)


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
def test_padding_may_appear_at_the_layer(model, options):
    inputs, before = equal_lengths(), {"method": "uniform", "retention_ratio": 0.5}
    short = short_of(model, inputs, before)
    assert short.attention_mask.all()
    assert len(set(short.is_video.sum(1).tolist())) == 2
    assert generate(model, inputs, before=before, **options)[0] == references(equal_lengths, before="uniform")


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
def test_a_row_without_video(model, options):
    masks = []
    layer = model.model.language_model.layers[2].self_attn
    hook = layer.register_forward_pre_hook(lambda _m, _a, kw: masks.append(kw["attention_mask"]), with_kwargs=True)
    assert generate(model, with_text_row(), **options)[0] == references(with_text_row)
    hook.remove()
    assert all(mask.any(-1).all() for mask in masks)  # some kernels answer NaN to a row that sees nothing


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("noncausal", [False, True])
def test_first_and_last_layer_and_candidates(model, layer, noncausal):
    inside = FastvMergePruner(layer=layer, retention_ratio=0.3, noncausal_layer=noncausal)
    assert generate(model, repetitive(), inside, prompt_lookup_num_tokens=3)[0] == references(repetitive, inside)


def two_dimensional(module, query, key, value, attention_mask, **kwargs):
    """What flash attention does with a mask of columns, in terms of SDPA."""
    if attention_mask is not None:
        n, kv = query.shape[2], key.shape[2]
        causal = torch.ones(n, kv, dtype=torch.bool).tril(kv - n)
        visible = causal if kwargs.pop("is_causal", True) else torch.ones_like(causal)
        attention_mask = visible & attention_mask[:, None, None, :kv].bool() | torch.eye(n, kv, dtype=torch.bool)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


@pytest.mark.parametrize("attention", ["eager", "flash_stand_in"])
@pytest.mark.parametrize("noncausal", [False, True])
@pytest.mark.parametrize("make_inputs", [one_video, three_videos, equal_lengths])
def test_other_forms_of_masks(attention, noncausal, make_inputs):
    AttentionInterface.register("flash_stand_in", two_dimensional)
    AttentionMaskInterface.register("flash_stand_in", flash_attention_mask)
    model = tiny.llava_onevision()
    model.model.language_model.config._attn_implementation = attention
    inside = FastvMergePruner(layer=2, retention_ratio=0.4, noncausal_layer=noncausal)
    before = {"method": "uniform", "retention_ratio": 0.5}
    assert generate(model, make_inputs(), inside, before)[0] == references(make_inputs, inside, "uniform")


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_beams_of_a_batch_equal_rows_alone(model, options):
    inputs = three_videos()
    rows = [alone(inputs, 0, slice(0, 2)), alone(inputs, 1, slice(2, 3))]
    expected = [generate(model, row, num_beams=3, **options)[0][0] for row in rows]
    assert generate(model, inputs, num_beams=3, **options)[0] == expected
    assert generate(model, inputs, num_beams=3, use_cache=False)[0] == expected


def test_several_samples_per_prompt(model):
    with tango.prune(model, **BEFORE, layer_pruner=INSIDE) as pruning:
        torch.manual_seed(0)
        output = model.generate(**three_videos(), do_sample=True, num_return_sequences=2, max_new_tokens=NEW, top_k=1)
    rows = new_tokens(model, three_videos(), output)
    assert rows[::2] == rows[1::2] == references(three_videos)
    assert pruning.stats.layer.tokens[0] == int(short_of(model, three_videos()).is_video.sum())


@pytest.mark.parametrize("inputs", [one_video, three_videos])
def test_keeping_all_equals_no_layer_pruning(model, inputs):
    inputs = inputs()
    with tango.prune(model, **BEFORE):
        expected = new_tokens(model, inputs, model.generate(**inputs, **GREEDY))
        logits = model(**inputs).logits
    inside = FastvMergePruner(layer=2, retention_ratio=1.0)
    assert generate(model, inputs, inside)[0] == expected
    attended = inputs["attention_mask"].bool()
    with tango.prune(model, **BEFORE, layer_pruner=inside), torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[attended], logits[attended], rtol=1e-4, atol=1e-4)


def test_noncausal_layer_changes_the_states(model):
    logits = []
    for noncausal in (False, True):
        inside = FastvMergePruner(layer=2, retention_ratio=0.4, noncausal_layer=noncausal)
        with tango.prune(model, **BEFORE, layer_pruner=inside), torch.no_grad():
            logits.append(model(**one_video()).logits[:, -1])
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_each_layer_caches_what_it_has_seen(model):
    inputs, steps = one_video(), 3
    options = {"do_sample": False, "max_new_tokens": steps, "min_new_tokens": steps, "return_dict_in_generate": True}
    with tango.prune(model, **BEFORE, layer_pruner=INSIDE) as pruning:
        output = model.generate(**inputs, **options)
    (S,), layer = pruning.stats.prompt_after, pruning.stats.layer
    entered, stayed = layer.tokens
    short = S - entered + stayed
    assert [c.keys.shape[2] - (steps - 1) for c in output.past_key_values.layers] == [S, S, short, short]
    assert (entered, stayed) == (pruning.stats.tokens_after + 1, round(0.4 * entered))
    kept = pruning.stats.tokens_after / pruning.stats.tokens_before
    assert layer.mean_retention_ratio == pytest.approx(kept * (2 + 2 * stayed / entered) / 4)
    assert pruning.stats.to_dict()["layer"]["layers"] == (2,)
    assert "at layer 2" in str(pruning.stats)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_of_a_padded_batch_is_that_of_the_oracle(model, side):
    texts = (("A ", 6), " cat sat."), (("Now see this one: ", 6), " dog.")
    rows = [tiny.prompt(*prompt, answer) for prompt, answer in texts]
    both = tiny.batch(*rows, side=side)
    labels = torch.full_like(both["input_ids"], -100)
    for row, (_, answer) in enumerate(texts):
        ids = both["input_ids"][row]
        end = int(both["attention_mask"][row].nonzero().max()) + 1
        labels[row, end - len(answer) : end] = ids[end - len(answer) : end]
    inputs = {**both, "pixel_values_videos": torch.stack([tiny.clip(2), tiny.clip(4)]), "video_timestamps_s": TIMES * 2}
    short = short_of(model, inputs)
    losses = []
    for row, (_, answer) in enumerate(texts):
        attended = short.attention_mask[row].bool()
        embeds, is_visual = short.inputs_embeds[row, attended], short.is_video[row, attended]
        query = len(embeds) - len(answer) - 1  # the last token before the answer
        with torch.no_grad():
            states, _ = layer_oracle.run(model.model.language_model, embeds, is_visual, INSIDE, query=query)
            logits = model.lm_head(states[-len(answer) - 1 : -1])
        losses += F.cross_entropy(logits, torch.tensor(tiny.prompt(answer)), reduction="none").tolist()
    with tango.prune(model, **BEFORE, layer_pruner=INSIDE), torch.no_grad():
        output = model(**inputs, labels=labels)
    assert output.logits.shape[:2] == labels.shape
    assert float(output.loss) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("use_cache", [False, True])
def test_gradients_reach_what_was_merged_away(use_cache):
    model = tiny.llava_onevision().train()
    inputs = one_video()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.video_token_id, -100)
    with tango.prune(
        model, "uniform", retention_ratio=0.5, layer_pruner=FastvMergePruner(layer=1, retention_ratio=0.1)
    ) as pruning:
        shorts = []
        prepare = pruning._prepare

        def watch(*args):
            prepared = prepare(*args)
            prepared.short.inputs_embeds.retain_grad()
            shorts.append(prepared.short)
            return prepared

        pruning._prepare = watch
        model(**inputs, labels=labels, use_cache=use_cache).loss.backward()
    assert (shorts[0].inputs_embeds.grad[shorts[0].is_video].abs().sum(-1) > 0).all()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


CONFIGS = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen2.5-vl": Qwen2_5_VLTextConfig,
    "qwen3-vl": Qwen3VLTextConfig,
}


@pytest.mark.parametrize("family", CONFIGS)
def test_decoders_of_other_families(family):
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 50, "head_dim": 16, "initializer_range": 0.2,
    }  # fmt: skip
    if family.endswith("vl"):
        rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}
        sizes["rope_parameters"] = {**rope, "mrope_interleaved": True} if family == "qwen3-vl" else rope
    torch.manual_seed(0)
    decoder = AutoModel.from_config(CONFIGS[family](**sizes)).eval()
    embeds = torch.randn(1, 40, 64)
    is_visual = torch.zeros(1, 40, dtype=torch.bool)
    is_visual[:, 5:33] = True
    positions = torch.arange(40)[None]
    if family.endswith("vl"):
        positions = torch.stack([positions, positions // 3, positions % 7])
    pruner = FastvMergePruner(layer=3, retention_ratio=0.25)
    scope = layer_pruning(decoder, pruner, is_visual=is_visual, attention_mask=torch.ones(1, 40))
    with torch.no_grad(), scope as record:
        states = decoder(inputs_embeds=embeds, position_ids=positions).last_hidden_state[0]
    with torch.no_grad():
        expected, stays = layer_oracle.run(decoder, embeds[0], is_visual[0], pruner, positions=positions)
    assert (record.entered, record.stayed) == ((28,), {3: (7,)})
    torch.testing.assert_close(states[stays], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(states[5 : stays[5]], states[4].expand(stays[5] - 5, -1))  # dropped: the kept one before


SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
GLM_V = {"rope_type": "default", "rope_theta": 1e4}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
# Every decoder but those that `test_decoders_of_other_families` has.
ROTATIONS = {
    "halves": LlamaConfig(**SIZES),
    "halves, windows off": MistralConfig(**SIZES, sliding_window=None),
    "halves after norms, experts": Qwen3MoeConfig(
        **SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "partial and interleaved": Glm4Config(**SIZES, head_dim=16),
    "interleaved, three sections": Glm4vTextConfig(**SIZES, rope_parameters={**GLM_V, "mrope_section": [2, 3, 3]}),
    "partial, interleaved, three sections": Glm4vTextConfig(
        **SIZES, rope_parameters={**GLM_V, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
    ),
    "the same, experts": Glm4vMoeTextConfig(
        **SIZES,
        **ROUTED,
        head_dim=16,
        rope_parameters={**GLM_V, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5},
    ),
}


def one_prompt(decoder, method="fastv", **options):
    """40 states, 28 of them visual, through a decoder that is pruned at layer 2; the record and the cells that stay."""
    is_visual = torch.zeros(1, 40, dtype=torch.bool)
    is_visual[:, 5:33] = True
    embeds = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(40)[None]
    if hasattr(decoder.config, "rope_parameters") and "mrope_section" in decoder.config.rope_parameters:
        positions = torch.stack([positions, positions // 3, positions % 7])
    pruner = build_layer_pruner(method, layer=2, retention_ratio=0.25, **options)
    scope = layer_pruning(decoder, pruner, is_visual=is_visual, attention_mask=torch.ones(1, 40))
    with torch.no_grad(), scope as record:
        decoder(inputs_embeds=embeds, position_ids=positions)
    return {"inputs_embeds": embeds, "position_ids": positions}, record.places[0][1].tolist()


def small_decoder(config, **options):
    torch.manual_seed(0)
    return AutoModel.from_config(config, **options).eval()


# Their options, and the layer whose queries and keys they read where layer 2 is pruned.
METHODS = [("fastv", {}, 1), ("pyramiddrop", {"num_layers": 3}, 2)]


@pytest.mark.parametrize("method", METHODS, ids=["before", "own"])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_any_rotation(rotation, method):
    """What stays has the largest of the weights that eager attention returns, in the layer before or in the layer."""
    name, options, layer = method
    inputs, stayed = one_prompt(small_decoder(ROTATIONS[rotation]), name, **options)
    with torch.no_grad():
        eager = small_decoder(ROTATIONS[rotation], attn_implementation="eager")
        weights = eager(**inputs, output_attentions=True).attentions[layer][0, :, -1, 5:33].mean(0)
    assert sorted(stayed) == sorted(weights.topk(7).indices.tolist())


@pytest.mark.parametrize("method", METHODS, ids=["before", "own"])
def test_attention_that_cannot_be_read_is_refused(method):
    name, options, layer = method
    decoder = small_decoder(ROTATIONS["halves"])
    decoder.layers[layer].self_attn.compile(backend="eager")
    with pytest.raises(
        tango.UnsupportedModelError, match=rf"layer {layer} calls .*which it did not; leave out torch\.compile"
    ):
        one_prompt(decoder, name, **options)


def test_reading_a_layers_own_queries_and_keys_shows_in_nothing_else(model):
    """No hook of its attention sees the call ahead, the cache gets every token once, and no tap is left."""
    attention, calls = model.model.language_model.layers[2].self_attn, []
    handle = attention.register_forward_hook(lambda _m, _args, output: calls.append(output[0].shape[1]))
    inside = build_layer_pruner("pyramiddrop", layer=2, num_layers=4, retention_ratio=0.5)
    before = vars(attention).copy()
    with torch.no_grad(), tango.prune(model, **BEFORE, layer_pruner=inside) as pruning:
        cache = model(**one_video(), use_cache=True).past_key_values
    handle.remove()
    assert vars(attention) == before
    assert pruning.stats.layer.layers == (2, 3)
    assert calls == [cache.layers[2].keys.shape[2]]


@pytest.mark.parametrize("place", [None, "model.language_model.layers.1.mlp", "model.language_model.layers.3"])
def test_nothing_stays_behind(model, place):
    modules = {name: set(m.__dict__) for name, m in model.named_modules()}
    before = state_of(model)
    with tango.prune(model, **BEFORE, layer_pruner=INSIDE):
        inside = state_of(model)["hooks"]
        if place is not None:

            def fail(*_args):
                raise RuntimeError("on purpose")

            hook = model.get_submodule(place).register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="on purpose"):
                model.generate(**one_video(), **GREEDY)
            hook.remove()
        first, second = (model.generate(**one_video(), **GREEDY) for _ in range(2))
        assert torch.equal(first, second)
        assert state_of(model)["hooks"] == inside
    assert state_of(model) == before
    assert {name: set(m.__dict__) for name, m in model.named_modules()} == modules


def test_other_threads_are_left_alone(model):
    text = tiny.batch(tiny.prompt("Hello there"))
    expected, seen = model(**text).logits, []

    def plain(*_args):
        if threading.current_thread() is threading.main_thread() and not seen:
            thread = threading.Thread(target=lambda: seen.append(model(**text).logits))
            thread.start()
            thread.join()

    hook = model.model.language_model.layers[3].register_forward_pre_hook(plain)
    got, _ = generate(model, one_video())
    hook.remove()
    assert torch.equal(seen[0], expected)
    assert got == references(one_video)


def test_refusals(model):
    deep = FastvMergePruner(layer=4)
    with pytest.raises(tango.BudgetError, match=r"layer must lie in 1\.\.3 for an LLM of 4 layers, got 4"):
        tango.prune(model, layer_pruner=deep)
    with pytest.raises(tango.BudgetError, match="got 18"):
        tango.prune(model, layer_pruner="fastv-merge")
    with pytest.raises(tango.UnknownNameError, match="fastv-merge"):
        tango.prune(model, layer_pruner="fastv-merg")
    with (
        tango.prune(model, layer_pruner=INSIDE),
        pytest.raises(tango.UnsupportedModelError, match="prefill_chunk_size"),
    ):
        model.generate(**one_video(), **GREEDY, prefill_chunk_size=16)
    with pytest.raises(tango.BudgetError, match="layer must be at least 1"):
        FastvMergePruner(layer=0)
    with pytest.raises(tango.BudgetError, match="retention_ratio"):
        build_layer_pruner("fastv-merge", retention_ratio=0.0)
    with pytest.raises(tango.UnknownNameError, match="merge_weight"):
        build_layer_pruner("fastv-merge", merge_weigth=0.5)
    with pytest.raises(tango.OptionError, match="merge_weight"):
        build_layer_pruner("fastv-merge", merge_weight=1.5)
    other = tiny.llava_onevision()
    other.model.language_model.config.layer_types = ["full_attention"] * 3 + ["sliding_attention"]
    with pytest.raises(tango.UnsupportedModelError, match="sliding"):
        tango.prune(other, layer_pruner=INSIDE)
    other.model.language_model.config.layer_types, other.model.language_model.config.sliding_window = None, 4096
    with pytest.raises(tango.UnsupportedModelError, match="sliding"):
        tango.prune(other, layer_pruner=INSIDE)
    other.model.language_model.config.model_type = "gemma2"
    with pytest.raises(tango.UnsupportedModelError, match=r"llama, .* not gemma2"):
        tango.prune(other, layer_pruner=INSIDE)


def test_gradient_checkpointing_is_refused():
    model = tiny.llava_onevision().train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with tango.prune(model, layer_pruner=INSIDE), pytest.raises(tango.UnsupportedModelError, match="checkpointing"):
        model(**one_video())


def test_the_mean_ratio_sets_the_ratio_before_the_llm(model):
    inside = FastvMergePruner(layer=2, retention_ratio=0.5)
    with tango.prune(model, "tango", mean_retention_ratio=0.09, layer_pruner=inside) as pruning:
        assert pruning.pruner.retention_ratio == pytest.approx(0.12)
        assert pruning.pruner.resolved_segment_threshold == 0.65  # by the mean; 0.12 alone would mean 0.8
    options = {"mean_retention_ratio": 0.09, "layer_pruner": inside, "segment_threshold": 0.7}
    with tango.prune(model, "tango", **options) as pruning:
        assert pruning.pruner.resolved_segment_threshold == 0.7
    with tango.prune(model, "uniform", mean_retention_ratio=0.09) as pruning:
        assert pruning.pruner.retention_ratio == 0.09
    with pytest.raises(tango.BudgetError, match="out of reach"):
        tango.prune(model, "tango", mean_retention_ratio=0.9, layer_pruner=inside)
    with pytest.raises(tango.BudgetError, match="not both"):
        tango.prune(model, "tango", mean_retention_ratio=0.1, retention_ratio=0.1, layer_pruner=inside)
    with pytest.raises(tango.TangoError, match="mean_retention_ratio"):
        tango.prune(model, tango.build_pruner("uniform"), mean_retention_ratio=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = tiny.llava_onevision().to(dtype)
    rows, stats = generate(model, three_videos())
    assert all(rows)
    assert stats.layer.tokens[1] < stats.layer.tokens[0]
