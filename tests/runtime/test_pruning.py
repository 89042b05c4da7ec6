"""`tango.prune` on the real LLaVA-OneVision class: every way of decoding equals an independent reference."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from transformers import MaxLengthCriteria, Qwen2Config, Qwen2ForCausalLM, StoppingCriteriaList

import tango
from tango.methods import TangoPruner
from tests import tiny
from tests.tiny import TIMES, new_tokens, one_video, one_video_per_row, three_videos

NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def model():
    return tiny.llava_onevision()


def references(model, inputs: dict, steps: int = NEW) -> list[list[int]]:
    """What each row should generate: the pruned prompt, decoded without cache, padding or `generate`."""
    with tango.prune(model, "tango", retention_ratio=0.3) as pruning, torch.no_grad():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
    return [tiny.greedy_reference(model, short, row, steps) for row in range(len(inputs["input_ids"]))]


DECODING = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 16},
}


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
@pytest.mark.parametrize("inputs", [one_video, three_videos])
def test_generate_equals_reference(model, inputs, options):
    inputs = inputs()
    expected = references(model, inputs)
    with tango.prune(model, "tango", retention_ratio=0.3):
        output = model.generate(**inputs, **GREEDY, **options)
    assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert new_tokens(model, inputs, output) == expected


@pytest.mark.parametrize("assistance", ["prompt lookup", "assistant model"])
def test_assisted_decoding_equals_reference(model, assistance):
    inputs = one_video()
    inputs.update(tiny.batch(tiny.prompt("What? What? What? ", 6, " What? What?")))
    expected = references(model, inputs)
    if assistance == "prompt lookup":
        options = {"prompt_lookup_num_tokens": 3}
    else:
        text = model.config.text_config
        small = Qwen2Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            vocab_size=text.vocab_size,
            bos_token_id=None, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id,
        )  # fmt: skip
        options = {"assistant_model": Qwen2ForCausalLM(small).eval()}
    with tango.prune(model, "tango", retention_ratio=0.3):
        output = model.generate(**inputs, **GREEDY, **options)
    assert new_tokens(model, inputs, output) == expected


def test_beams_of_a_batch_equal_rows_alone(model):
    inputs = three_videos()
    alone = []
    for row, videos in ((0, slice(0, 2)), (1, slice(2, 3))):
        attended = inputs["attention_mask"][row].bool()
        single = {
            "input_ids": inputs["input_ids"][row : row + 1, attended],
            "attention_mask": inputs["attention_mask"][row : row + 1, attended],
            "pixel_values_videos": inputs["pixel_values_videos"][videos],
            "video_timestamps_s": inputs["video_timestamps_s"][videos],
        }
        with tango.prune(model, "tango", retention_ratio=0.3):
            output = model.generate(**single, num_beams=3, **GREEDY)
        alone += new_tokens(model, single, output)
    with tango.prune(model, "tango", retention_ratio=0.3):
        output = model.generate(**inputs, num_beams=3, return_dict_in_generate=True, output_scores=True, **GREEDY)
    assert new_tokens(model, inputs, output.sequences) == alone


def test_sampling_returns_several_sequences_and_repeats_with_the_seed(model):
    inputs = three_videos()
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        with tango.prune(model, "tango", retention_ratio=0.3):
            draws.append(model.generate(**inputs, do_sample=True, num_return_sequences=2, max_new_tokens=NEW))
    assert draws[0].shape[0] == 4
    assert torch.equal(*draws)


def test_images_beside_videos(model):
    image = tiny.tokenizer().convert_tokens_to_ids("<image>")
    size = tiny.IMAGE_SIZE
    pixels = torch.randn(1, 3, 3, size, size, generator=torch.Generator().manual_seed(9))
    sizes = torch.tensor([[size, 2 * size]])
    with torch.no_grad():
        features = model.model.get_image_features(pixels, sizes, return_dict=True).pooler_output
    inputs = three_videos()
    first = tiny.prompt("See ") + [image] * len(features[0]) + tiny.prompt(" and ", 6, " then ", 6, " why?")
    inputs.update(tiny.batch(first, tiny.prompt("And ", 6, "?")), pixel_values=pixels, image_sizes=sizes)
    expected = references(model, inputs)
    with tango.prune(model, "tango", retention_ratio=0.3):
        output = model.generate(**inputs, **GREEDY)
    assert new_tokens(model, inputs, output) == expected


@pytest.mark.parametrize("method", tango.available_pruners())
@pytest.mark.parametrize(
    ("make_inputs", "options"),
    # Stock transformers 5.17 gives beams the wrong videos when rows have different numbers of them.
    [(three_videos, {}), (one_video_per_row, {"num_beams": 3})],
    ids=["greedy", "beams"],
)
def test_retention_ratio_one_equals_the_stock_model(model, method, make_inputs, options):
    inputs = make_inputs()
    stock_inputs = {k: v for k, v in inputs.items() if k != "video_timestamps_s"}
    stock = model.generate(**stock_inputs, **GREEDY, **options)
    with tango.prune(model, method, retention_ratio=1.0) as pruning:
        pruned = model.generate(**inputs, **GREEDY, **options)
    assert torch.equal(stock, pruned)
    assert pruning.stats.tokens_before == pruning.stats.tokens_after


def test_the_language_model_sees_the_short_prompt(model):
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    with tango.prune(model, "uniform", retention_ratio=0.25) as pruning:
        model.generate(**one_video(), **GREEDY)
    hook.remove()
    text = len(tiny.prompt("Look: ", " What?"))
    kept = round(0.25 * 6 * 16)
    assert seen[0] == text + kept + 1  # one newline
    assert set(seen[1:]) == {1}
    assert pruning.stats.prompt_after == (seen[0],)
    assert pruning.stats.prompt_before == (text + 6 * 16 + 1,)
    assert pruning.stats.tokens_after == kept
    assert (pruning.stats.entering_before, pruning.stats.entering_after) == (6 * 16 + 1, kept + 1)
    stages = ["tower", "project", "prune", "splice", "between", "prefill", "decoding"]
    assert list(pruning.stats.to_dict()["stages_ms"]) == stages


@pytest.mark.parametrize("saliency", ["p-attn", "attn"])
def test_direct_forward_gives_a_loss_and_gradients(saliency):
    model = tiny.llava_onevision()
    inputs = three_videos()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == model.config.video_token_id] = -100
    with tango.prune(model, "tango", retention_ratio=0.3, saliency=saliency) as pruning:
        output = model(**inputs, labels=labels)
        output.loss.backward()
    assert output.logits.shape[:2] == inputs["input_ids"].shape
    assert max(pruning.stats.prompt_after) < inputs["input_ids"].shape[1]
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_of_a_padded_batch_is_that_of_its_rows(model, side):
    rows = tiny.prompt("A ", 6, " cat sat."), tiny.prompt("Now see this one: ", 6, " dog.")
    pixels = torch.stack([tiny.clip(2), tiny.clip(4)])
    total, count = 0.0, 0
    with tango.prune(model, "tango", retention_ratio=0.3), torch.no_grad():
        for ids, clip in zip(rows, pixels, strict=True):
            single = tiny.batch(ids)
            labels = single["input_ids"].masked_fill(single["input_ids"] == model.config.video_token_id, -100)
            loss = model(**single, pixel_values_videos=clip[None], video_timestamps_s=TIMES, labels=labels).loss
            terms = int((labels[:, 1:] != -100).sum())
            total, count = total + float(loss) * terms, count + terms
        both = tiny.batch(*rows, side=side)
        labels = both["input_ids"].masked_fill(both["attention_mask"] == 0, -100)
        labels[labels == model.config.video_token_id] = -100
        loss = model(**both, pixel_values_videos=pixels, video_timestamps_s=TIMES * 2, labels=labels).loss
    torch.testing.assert_close(float(loss), total / count, rtol=1e-4, atol=1e-5)


def state_of(model) -> dict:
    hooks = {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_with_kwargs))
        for name, m in model.named_modules()
    }
    return {"hooks": hooks, "attributes": {k: id(v) for k, v in model.__dict__.items()}, "class": type(model)}


def test_removal_restores_the_model(model):
    before = state_of(model)
    with tango.prune(model, "tango"):
        model.generate(**one_video(), **GREEDY)
        assert state_of(model) != before
    assert state_of(model) == before


@pytest.mark.parametrize(
    "place", ["model.vision_tower.embeddings", "model.multi_modal_projector.linear_2", "model.language_model"]
)
def test_an_exception_inside_leaves_nothing_behind(model, place):
    before = state_of(model)
    module = model.get_submodule(place)

    def fail(*_args):
        raise RuntimeError("on purpose")

    pruning = tango.prune(model, "tango")
    hook = module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.generate(**one_video(), **GREEDY)
    hook.remove()
    model.generate(**one_video(), **GREEDY)  # the same pruning still works
    assert pruning.stats is not None
    pruning.remove()
    pruning.remove()
    assert state_of(model) == before


def test_other_videos_do_not_leak_into_each_other(model):
    inputs = three_videos()
    first = {**one_video(), "pixel_values_videos": inputs["pixel_values_videos"][:1]}
    second = {**one_video(), "pixel_values_videos": inputs["pixel_values_videos"][2:]}
    with tango.prune(model, "tango", retention_ratio=0.3):
        a, _b, again = (model.generate(**i, **GREEDY) for i in (first, second, first))
    assert torch.equal(a, again)


def test_text_and_plain_calls_pass_through(model):
    text = tiny.batch(tiny.prompt("Hello there"))
    stock = model.generate(**text, **GREEDY), model(**text).logits
    with tango.prune(model, "tango") as pruning:
        assert torch.equal(model.generate(text["input_ids"], attention_mask=text["attention_mask"], **GREEDY), stock[0])
        assert torch.equal(model(**text).logits, stock[1])
    assert pruning.stats is None


@pytest.mark.parametrize("form", ["argument", "generation config", "positional", "criterion"])
def test_max_length_counts_the_callers_prompt(model, form):
    inputs = one_video()
    total = inputs["input_ids"].shape[1] + 4
    options = {"max_length": total}
    if form == "generation config":
        config = copy.deepcopy(model.generation_config)
        config.max_length = total
        options = {"generation_config": config}
    elif form == "criterion":
        options = {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(total)]), "max_new_tokens": 9}
    elif form == "positional":
        config = copy.deepcopy(model.generation_config)
        config.max_length = total
    with tango.prune(model, "tango", retention_ratio=0.3):
        if form == "positional":
            ids = inputs.pop("input_ids")
            output = model.generate(ids, config, do_sample=False, **inputs)
        else:
            output = model.generate(**inputs, do_sample=False, **options)
    assert output.shape[1] == total


@pytest.mark.parametrize("copier", [copy.deepcopy, pickle.dumps])
def test_a_pruned_model_is_not_copied(copier):
    """A copy would still run the original."""
    model = tiny.llava_onevision()
    copier(model)
    with tango.prune(model, "uniform"), pytest.raises(tango.TangoError, match="remove"):
        copier(model)
    copier(model)


def test_a_removed_pruning_is_not_entered_again(model):
    pruning = tango.prune(model, "uniform")
    pruning.remove()
    with pytest.raises(tango.TangoError, match=r"call tango\.prune again"), pruning:
        pass


def test_a_wrapper_put_on_top_is_left_alone():
    model = tiny.llava_onevision()
    pruning = tango.prune(model, "uniform")
    below = model.generate
    model.generate = lambda *args, **kwargs: below(*args, **kwargs)
    on_top = model.generate
    with pytest.warns(UserWarning, match="generate was replaced"):
        pruning.remove()
    assert model.generate is on_top


def test_labels_of_another_shape_are_refused(model):
    inputs = one_video()
    with tango.prune(model, "tango"), pytest.raises(ValueError, match="labels must have the shape of input_ids"):
        model(**inputs, labels=inputs["input_ids"][:, :-2])


def test_two_threads_with_two_models_keep_their_own_timestamps():
    """Timestamps decide which tokens are kept here; each thread must get what it gets alone."""
    models = [tiny.llava_onevision(seed) for seed in (0, 1)]
    times = [[[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]], [[0.0, 60.0, 120.0, 180.0, 240.0, 300.0]]]
    method = TangoPruner(retention_ratio=0.3, segment_threshold=-1.0, static_merging=False)

    def work(i: int) -> list[torch.Tensor]:
        inputs = {**one_video(), "video_timestamps_s": times[i]}
        with tango.prune(models[i], method):
            return [model_output(models[i], inputs) for _ in range(4)]

    def model_output(model, inputs) -> torch.Tensor:
        return model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **GREEDY).logits[0]

    alone = [work(i) for i in (0, 1)]
    together: list = [None, None]

    def run(i: int) -> None:
        together[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        for a, b in zip(alone[i], together[i], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = tiny.llava_onevision().to(dtype)
    with tango.prune(model, "tango", retention_ratio=0.3) as pruning:
        output = model.generate(**one_video(), **GREEDY)
    assert output.shape[1] > one_video()["input_ids"].shape[1]
    assert 0 < pruning.stats.tokens_after < pruning.stats.tokens_before


def test_videos_of_unequal_length(model):
    inputs = tiny.batch(tiny.prompt("A ", 6, " B ", 3, " why?"))
    inputs["pixel_values_videos"] = [tiny.clip(1, 6), tiny.clip(2, 3)]
    inputs["video_timestamps_s"] = [TIMES[0], [0.0, 1.0, 2.0]]
    with tango.prune(model, "tango", retention_ratio=0.3) as pruning:
        model.generate(**inputs, **GREEDY)
    assert [video.frames for video in pruning.stats.videos] == [6, 3]


def test_missing_timestamps_warn_only_methods_that_use_time(model):
    inputs = {k: v for k, v in one_video().items() if k != "video_timestamps_s"}
    with tango.prune(model, "tango"), pytest.warns(UserWarning, match="one second apart"):
        model.generate(**inputs, **GREEDY)
    with tango.prune(model, "uniform"):
        model.generate(**inputs, **GREEDY)


WRONG = {
    "no frames": ({"pixel_values_videos": tiny.clip(1)[None, :0]}, ValueError, "at least one frame, got frames .0."),
    "placeholders": ({"input_ids": torch.tensor([tiny.prompt("Look", 5)])}, ValueError, "81 video placeholders"),
    "times backwards": ({"video_timestamps_s": [[0, 2, 1, 3, 4, 5]]}, ValueError, "not run backwards"),
    "times unknown": ({"video_timestamps_s": [[0, 1, 2, 3, 4, float("nan")]]}, ValueError, "must be finite"),
    "timestamps": ({"video_timestamps_s": [[0.0, 1.0]]}, ValueError, "video_timestamps_s must hold"),
    "embeddings": ({"inputs_embeds": torch.zeros(1, 4, 128)}, ValueError, "cannot both be given"),
}


@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_inputs_say_what_is_wrong(model, change, error, message):
    inputs = {**one_video(), **change}
    if "input_ids" in change:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with tango.prune(model, "tango"), pytest.raises(error, match=message):
        model.generate(**inputs, **GREEDY)


def test_refusals(model):
    with pytest.raises(tango.UnknownNameError, match="Did you mean 'tango'"):
        tango.prune(model, "tongo")
    with pytest.raises(tango.UnknownNameError, match="retention_ratio"):
        tango.prune(model, "tango", retain_ratio=0.1)
    with pytest.raises(tango.UnsupportedModelError, match="llava_onevision"):
        tango.prune(torch.nn.Linear(2, 2), "tango")
    with pytest.raises(tango.TangoError, match="pruned already"), tango.prune(model, "tango"):
        tango.prune(model, "uniform")
    headless = tiny.llava_onevision()
    del headless.__dict__["pooling_head"]
    with pytest.raises(tango.MissingSignalError, match="saliency='attn'"):
        tango.prune(headless, "tango")
    tango.prune(headless, "uniform").remove()
    with tango.prune(headless, "tango", saliency="attn"):
        headless.generate(**one_video(), **GREEDY)
