"""Code of the caller's that runs inside `generate`, or counts behind it: it knows the unpruned prompt, and gets it."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.trainer_pt_utils import LabelSmoother

import tango
from tests import tiny, tiny_qwen
from tests.tiny import one_video, three_videos

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # a cache has its older name here, which both know
NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
RATIO = {"retention_ratio": 0.3}
FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@functools.cache
def build(family: str = "llava_onevision"):
    if family == "llava_onevision":
        return tiny.llava_onevision(), one_video()
    return tiny_qwen.model(family), tiny_qwen.inputs(family, ("Look: ", tiny_qwen.WIDE, " What?"))


def new_ids(model, inputs: dict, **options) -> list[list[int]]:
    return model.generate(**inputs, **{**GREEDY, **options})[:, inputs["input_ids"].shape[1] :].tolist()


class Processor(LogitsProcessor):
    """A logits processor from a function; it notes the ids that it sees."""

    def __init__(self, function=lambda _ids, scores: scores):
        self.function, self.seen = function, []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.clone())
        return self.function(input_ids, scores)


class Criterion(StoppingCriteria):
    def __init__(self, function):
        self.function = function

    def __call__(self, input_ids, _scores, **_):
        return self.function(input_ids)


class Streamer(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended = True


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["greedy", "no cache", "beams", "samples"],
)
def test_processors_see_the_callers_prompt_and_what_was_generated(options):
    model, _ = build()
    inputs, processor = three_videos(), Processor()
    with tango.prune(model, "tango", **RATIO):
        output = model.generate(**inputs, **{**GREEDY, **options}, logits_processor=LogitsProcessorList([processor]))
    ids = inputs["input_ids"]
    L = ids.shape[1]
    for step, seen in enumerate(processor.seen):
        assert seen.shape[1] == L + step
        assert torch.equal(seen[:, :L], ids.repeat_interleave(len(seen) // len(ids), dim=0))
    if "num_beams" not in options:
        assert torch.equal(processor.seen[-1], output[:, : L + NEW - 1])


def penalised(prompt_ids: torch.Tensor, factor: float = 1.7):
    """The penalty for tokens that occur, by hand: for the prompt's, and those generated since."""

    def penalise(ids, scores):
        for row in range(len(ids)):
            for token in set(torch.cat([prompt_ids[row], ids[row]]).tolist()):
                value = scores[row, token]
                scores[row, token] = value * factor if value < 0 else value / factor
        return scores

    return penalise


@pytest.mark.parametrize("family", FAMILIES)
def test_the_librarys_own_processors_look_at_the_callers_prompt(family):
    model, inputs = build(family)
    ids = inputs["input_ids"]
    # A prompt whose dropped placeholders are penalised, too: the id of the placeholder made likely.
    video = model.config.video_token_id

    def push(_ids, scores):
        scores[:, video] += 30.0
        return scores

    with tango.prune(model, "uniform", **RATIO):
        by_hand = Processor(lambda i, s: penalised(ids)(i, push(i, s)))
        expected = new_ids(model, inputs, logits_processor=LogitsProcessorList([Processor(push), by_hand]))
        assert len(by_hand.seen) == NEW
        plain = new_ids(model, inputs)
        penalty = new_ids(model, inputs, repetition_penalty=1.7)
        manual = new_ids(model, inputs, logits_processor=LogitsProcessorList([Processor(penalised(ids))]))
        ngram = new_ids(model, inputs, encoder_no_repeat_ngram_size=1)
    assert penalty == manual
    assert not set(ids[0].tolist()) & set(ngram[0])
    assert expected
    assert plain


def test_lengths_are_those_that_stock_has():
    """An end that is always most likely comes just when a least length is reached, and a last token at the end."""
    model, inputs = build()
    L, eos = inputs["input_ids"].shape[1], model.generation_config.eos_token_id

    def push(_ids, scores):
        scores[:, eos] = scores[:, eos] + 100.0
        return scores

    ends = {
        "min_length": {"min_length": L + 3, "max_new_tokens": 8},
        "min_new_tokens": {"min_new_tokens": 2, "max_new_tokens": 8},
        "max_length": {"max_length": L + 5, "min_length": L + 4},
        "forced": {"max_length": L + 4, "forced_eos_token_id": 65, "min_length": L + 4},
        "decay": {"max_length": L + 7, "exponential_decay_length_penalty": (3, 50.0)},
        "begin": {"begin_suppress_tokens": [eos], "max_length": L + 6},
    }
    stock = tiny_qwen.stock(inputs)
    for name, options in ends.items():
        processors = [] if name == "decay" else [Processor(push)]
        options = {"do_sample": False, "logits_processor": LogitsProcessorList(processors), **options}
        unpruned = model.generate(**stock, **options)
        with tango.prune(model, "uniform", **RATIO):
            pruned = model.generate(**inputs, **options)
        assert pruned.shape == unpruned.shape, name
        if name == "forced":
            assert pruned[0, -1] == unpruned[0, -1] == 65


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_and_allowed_tokens_are_those_of_stock(family):
    model, inputs = build(family)
    L = inputs["input_ids"].shape[1]
    seen = []

    def allowed(_row, ids):
        seen.append(ids.shape[-1])
        return [70 + len(ids) - L, 80]

    options = {}
    if family == "llava_onevision":  # of Qwen-VL, stock code counts the second prompt's positions wrongly, and fails
        options = {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[65, 66, 67]])}
    expected = new_ids(model, tiny_qwen.stock(inputs), **options, prefix_allowed_tokens_fn=allowed)
    for ratio in (1.0, 0.3):
        seen.clear()
        with tango.prune(model, "uniform", retention_ratio=ratio, **positions(family)):
            got = new_ids(model, inputs, **options, prefix_allowed_tokens_fn=allowed)
        assert seen == [L + step for step in range(NEW)]
        assert all(token in (70 + step, 80) for step, token in enumerate(got[0]))
        assert ratio < 1 or got == expected


def positions(family: str) -> dict:
    return {} if family == "llava_onevision" else {"positions": "stock"}


@pytest.mark.parametrize("inner", ["text", "video", "generate"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("method", ["uniform", "fastv"])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_another_pass_inside_is_left_alone_and_leaves_alone(family, method, use_cache, inner):
    """A processor asks the same model something else; neither answer changes, and `stats` are those of `generate`."""
    model, inputs = build(family)
    text = {"input_ids": torch.arange(60, 260)[None] % 90 + 10}  # longer than the prompt
    other = build(family)[1] if family != "llava_onevision" else {**inputs, "pixel_values_videos": tiny.clip(9)[None]}

    @torch.no_grad()
    def ask() -> torch.Tensor:
        if inner == "generate":
            return model.generate(**text, do_sample=False, max_new_tokens=2)
        return model(**(text if inner == "text" else other), use_cache=use_cache).logits

    layer = 2 if family == "qwen3_vl" else 1  # the others are fed with features
    options = {"layer": layer, "retention_ratio": 0.8} if method == "fastv" else RATIO
    answers = []

    def contrast(_ids, scores):
        answers.append(ask())
        return scores

    with tango.prune(model, method, **options) as pruning:
        expected, alone = new_ids(model, inputs, use_cache=use_cache), ask()
        got = new_ids(model, inputs, use_cache=use_cache, logits_processor=LogitsProcessorList([Processor(contrast)]))
        assert pruning.stats.prompt_before == (inputs["input_ids"].shape[1],)
        assert (pruning.stats.layer is None) == (method == "uniform")
        assert "decoding" in pruning.stats.timer.ms()
    assert got == expected
    assert len(answers) == NEW
    for found in answers:
        torch.testing.assert_close(found, alone)


def test_stopping_criteria_and_streamers_count_from_the_callers_prompt():
    model, inputs = build()
    L = inputs["input_ids"].shape[1]
    with tango.prune(model, "tango", **RATIO):
        whole = new_ids(model, inputs)[0]
        wanted = whole[2]
        first = whole.index(wanted)
        stop = StoppingCriteriaList([Criterion(lambda ids: (ids[:, L:] == wanted).any(dim=1))])
        options = {"do_sample": False, "max_new_tokens": NEW, "stopping_criteria": stop}
        streamer = Streamer()
        output = model.generate(**inputs, **options, streamer=streamer)
    assert output[0, L:].tolist() == whole[: first + 1]
    prompt, *tokens = streamer.values
    assert torch.equal(prompt, inputs["input_ids"])
    assert torch.cat(tokens).tolist() == whole[: first + 1]
    assert streamer.ended


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_a_decoding_loop_of_the_callers():
    model, inputs = build()

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        del stopping_criteria, generation_config, kwargs
        for _ in range(NEW):
            logits = model(input_ids=input_ids, use_cache=False).logits[:, -1]
            token = logits_processor(input_ids, logits).argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], dim=1)
        return input_ids

    with tango.prune(model, "tango", **RATIO):
        assert new_ids(model, inputs, custom_generate=loop) == new_ids(model, inputs)
        with pytest.raises(tango.TangoError, match="video was not seen"):
            model.generate(**inputs, custom_generate=lambda _model, input_ids, **_: input_ids)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_the_next_turn_from_the_cache(family):
    """Right with the video beside it; without, the cache is refused, for it fits no ids that the caller has."""
    model, inputs = build(family)
    question = torch.tensor([[65, 66, 67, 68, 69, 70, 71, 72] * 6])
    with tango.prune(model, "uniform", **RATIO):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        cache = first["cache"] if "cache" in first else first["past_key_values"]
        ids = torch.cat([first.sequences, question], dim=1)
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        turn = {**inputs, **text}
        if "mm_token_type_ids" in turn:
            turn["mm_token_type_ids"] = torch.nn.functional.pad(
                turn["mm_token_type_ids"], (0, ids.shape[1] - turn["mm_token_type_ids"].shape[1])
            )
        with pytest.raises(tango.TangoError, match=r"cache .* holds a pruned prompt"):
            model.generate(**text, past_key_values=cache, **GREEDY)
        expected = new_ids(model, turn)
        assert new_ids(model, turn, past_key_values=cache) == expected
    other = tango.prune(model, "uniform", retention_ratio=0.5)
    with other, pytest.raises(tango.TangoError, match=r"cache .* holds a pruned prompt"):
        model.generate(**turn, past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_steps_after_a_direct_call(family):
    model, inputs = build(family)
    with tango.prune(model, "uniform", **RATIO), torch.no_grad():
        output = model(**inputs, use_cache=True)
        step = {"input_ids": output.logits[:, -1:].argmax(-1), "past_key_values": output.past_key_values}
        if family == "llava_onevision":
            assert model(**step).logits[0, -1].argmax() == new_ids(model, inputs)[0][1]
            long = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
            with pytest.raises(tango.TangoError, match="as many as before pruning"):
                model(**step, attention_mask=long)
        else:
            with pytest.raises(tango.TangoError, match="position_ids are needed"):
                model(**step)


@pytest.mark.parametrize("method", ["uniform", "fastv"])
def test_losses_of_the_callers_own_fit_the_logits(method):
    model, _ = build()
    inputs = three_videos()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == model.config.video_token_id] = -100
    labels[:, :-5] = -100  # the answers
    options = {"layer": 1, "retention_ratio": 0.8} if method == "fastv" else RATIO
    with tango.prune(model, method, **options), torch.no_grad():
        output = model(**inputs, labels=labels)
        plain, loss = model(**inputs, labels=labels, return_dict=False)[1], output.loss
    assert torch.equal(plain, output.logits)
    assert output.logits.shape[:2] == labels.shape
    flat = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    torch.testing.assert_close(torch.nn.functional.cross_entropy(*flat), loss)
    smoothed = LabelSmoother(epsilon=0.0)(output, labels, shift_labels=True)
    torch.testing.assert_close(smoothed, loss)
    found = (output.logits[:, -6:-1].argmax(-1) == labels[:, -5:]).float().mean()  # what metrics of a Trainer compare
    assert 0 <= found <= 1


def test_a_training_step_that_has_its_loss_keeps_the_short_logits():
    model, inputs = build()[0].train(), three_videos()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.video_token_id, -100)
    with tango.prune(model, "uniform", **RATIO) as pruning:
        labelled, own = model(**inputs, labels=labels).logits, model(**inputs).logits
        assert labelled.shape[1] == max(pruning.stats.prompt_after) < labels.shape[1]
    assert own.shape[:2] == labels.shape  # for a loss of the caller's own


def test_logits_of_columns_that_left_are_those_of_the_last_kept_one_before():
    model, inputs = build()
    with tango.prune(model, "uniform", **RATIO) as pruning, torch.no_grad():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        long = model(**inputs).logits[0]
        rows = model(inputs_embeds=short.inputs_embeds).logits[0]
        few = model(**inputs, logits_to_keep=3).logits[0]
    kept = short.kept[0].tolist()
    for column in range(len(long)):
        before = max((i for i, c in enumerate(kept) if c <= column), default=0)
        torch.testing.assert_close(long[column], rows[before])
    torch.testing.assert_close(few, long[-3:])
