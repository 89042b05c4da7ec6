"""Encode once, ask many: the answers of the video itself, without its tower, its pruner and its prefill."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tango
from tango.methods import available_pruners
from tango.mini import clip_file
from tango.models import adapter_class
from tango.models.calls import cache_argument
from tango.models.processors.glm import GlmProcessor
from tango.models.processors.protocol import ChatProtocol, WrappedProcessor
from tango.models.processors.qwen import Patches, QwenProcessor
from tango.runtime.answering import generate_output, prepare_chat
from tango.video.repeats import FIRST_EQUAL
from tests import tiny, tiny_qwen
from tests.families import all_families, internvl, smolvlm
from tests.families import glm as tiny_glm
from tests.models.test_base import MODELS

GREEDY = {"max_new_tokens": 4}
QUESTIONS = ("What is shown?", "Why?")
HISTORY = [("Who is this?", "A cat."), ("Is it big?", "No.")]


def video(count: int = 6, height: int = 60, width: int = 80, seed: int = 0) -> tango.Video:
    generator = torch.Generator().manual_seed(seed)
    still, noise = (
        torch.randint(0, 128, (n, height, width, 3), dtype=torch.uint8, generator=generator) for n in (1, count)
    )
    return tango.Video(
        frames=still + noise,
        timestamps_s=torch.arange(count, dtype=torch.float64) * 0.75,
        frame_indices=tuple(range(count)),
        num_source_frames=count,
        duration_s=count * 0.75,
        fps=4 / 3,
        path="clip.mp4",
        backend="pyav",
    )


def next_video_processor() -> Any:
    """The stock one: the family has none of its own."""
    from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    size = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
    return LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(**size),
        image_processor=LlavaNextImageProcessor(**size),
        tokenizer=tiny.tokenizer(),
        chat_template=(
            "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
            "{% if p['type'] == 'video' %}<video>{% else %}{{ p['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
        ),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def processor_of(family: str, model: Any) -> Any:
    if (make := all_families()[family].processor) is not None:
        return make(model)
    if family in tiny_qwen.ALL:
        patches = Patches(size=tiny_qwen.PATCH[family], min_pixels=1)
        return QwenProcessor(tiny_qwen.tokenizer(), form=adapter_class(family).form, patches=patches)
    if family in tiny_glm.CLASSES:
        patches = Patches(size=14, min_pixels=1)
        return GlmProcessor(tiny_glm.tokenizer(), form=adapter_class(family).form, patches=patches)
    if family == "llava_next_video":
        return next_video_processor()
    if family in ("internvl", "smolvlm"):
        return (internvl if family == "internvl" else smolvlm).processor()
    return adapter_class(family).make_processor(Path("nowhere"), model.config, tiny.tokenizer())


def build(family: str = "llava_onevision", dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    model = MODELS[family]()
    return model.to(dtype), processor_of(family, model)


def generated(model: Any, inputs: Any, **options: Any) -> tuple[list[int], Tensor]:
    """New ids of a prompt, and their logits (n, vocabulary)."""
    wanted = {"return_dict_in_generate": True, "output_logits": True}
    output = generate_output(model, inputs, **{**GREEDY, **wanted, **options})
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(output.logits)


def messages(shown: object, question: str, history: Any = ()) -> list[dict[str, Any]]:
    """The same conversation as `prepare_chat` takes it, written by hand."""
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for pair in history
             for role, text in zip(("user", "assistant"), pair, strict=True)]  # fmt: skip
    turns.append({"role": "user", "content": [{"type": "text", "text": question}]})
    turns[0]["content"].insert(0, {"type": "video", "video": shown})
    return turns


@contextmanager
def prefilled(model: Any) -> Iterator[list[int]]:
    """Columns of every pass through the LLM."""
    columns: list[int] = []

    def note(_module: nn.Module, _args: object, kwargs: dict[str, Any]) -> None:
        columns.append(kwargs["inputs_embeds"].shape[1])

    handle = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    yield columns
    handle.remove()


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def after_the_video(model: Any, inputs: Any) -> int:
    """Tokens of a prompt that follow its video."""
    last = (inputs["input_ids"][0] == adapter_class(model.config)(model).video_token_id).nonzero()[-1]
    return inputs["input_ids"].shape[1] - int(last) - 1


PLANS: dict[str, tango.Plan | None] = {
    "none": None,
    "uniform": tango.Plan.of("uniform", {"retention_ratio": 0.3}),
    "tango": tango.Plan.of("tango", {"retention_ratio": 0.3}),
}


@contextmanager
def pruned(model: Any, plan: tango.Plan | None) -> Iterator[Any]:
    if plan is None:
        yield None
        return
    with tango.prune(model, plan) as pruning:
        yield pruning


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", MODELS)
def test_the_answers_are_those_of_the_video_itself(family: str, plan: str, prefix_cache: bool) -> None:
    model, processor = build(family)
    shown = video()
    with pruned(model, PLANS[plan]):
        encoded = tango.encode(model, processor, shown, prefix_cache=prefix_cache)
        assert (encoded.tokens_after < encoded.tokens_before) == (plan != "none")
        assert (encoded.prefix_bytes > 0) == (prefix_cache and all_families()[family].keeps_prefix)
        for question, history in ((QUESTIONS[0], ()), (QUESTIONS[1], HISTORY), (QUESTIONS[0], HISTORY[:1])):
            wanted = prepare_chat(processor, messages(shown, question, history))
            given = tango.prepare(processor, encoded, question, history=history)
            assert given["input_ids"].tolist() == wanted["input_ids"].tolist()
            assert given.keys() == wanted.keys() - {FIRST_EQUAL}  # which frames look alike is for the tower alone
            assert given[encoded.video_input] is encoded
            ids, logits = generated(model, wanted)
            own_ids, own_logits = generated(model, given)
            assert own_ids == ids
            torch.testing.assert_close(own_logits, logits, rtol=1e-3, atol=1e-3)
            text = tango.answer(model, processor, shown, question, history=history, **GREEDY)
            assert tango.answer(model, processor, encoded, question, history=history, **GREEDY) == text


@pytest.mark.parametrize("family", MODELS)
def test_in_bfloat16(family: str) -> None:
    """Without the prefix the LLM reads the very same prompt; with it, in two pieces, which rounds otherwise."""
    model, processor = build(family, torch.bfloat16)
    with tango.prune(model, "uniform", retention_ratio=0.3):
        ids, logits = generated(model, tango.prepare(processor, video(), QUESTIONS[0]))
        for prefix_cache in (False, True):
            encoded = tango.encode(model, processor, video(), prefix_cache=prefix_cache)
            own_ids, own = generated(model, tango.prepare(processor, encoded, QUESTIONS[0]))
            if not prefix_cache:
                assert own_ids == ids
            torch.testing.assert_close(own[0], logits[0], rtol=0.05, atol=0.05 * float(logits[0].float().std()) + 0.02)


@pytest.mark.parametrize("family", MODELS)
def test_tower_and_pruner_run_once_and_only_the_question_is_prefilled(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not all_families()[family].keeps_prefix:
        pytest.skip(f"layers of {family} forget")
    model, processor = build(family)
    calls: list[int] = []
    stock = tango.UniformPruner.prune
    monkeypatch.setattr(tango.UniformPruner, "prune", lambda *args: (calls.append(1), stock(*args))[1])
    tower = adapter_class(model.config).tower_blocks(model)[0]
    with tango.prune(model, "uniform", retention_ratio=0.3) as pruning, counted(tower) as passes:
        tango.answer(model, processor, video(), QUESTIONS[0], **GREEDY)
        alone = len(passes), len(calls)
        passes.clear(), calls.clear()
        with prefilled(model) as columns:
            encoded = tango.encode(model, processor, video())
        before = 0 if encoded.prefix is None else encoded.prefix.input_ids.shape[1]
        assert (before > 0) == all_families()[family].keeps_prefix
        assert columns == [before] * (before > 0)
        for question, history in ((QUESTIONS[0], ()), (QUESTIONS[1], HISTORY)):
            given = tango.prepare(processor, encoded, question, history=history)
            with prefilled(model) as columns:
                generated(model, given)
            assert not before or columns[0] == after_the_video(model, given)
            assert set(columns[1:]) == {1}
            assert pruning.stats.tokens_after == encoded.tokens_after
            assert pruning.stats.prompt_after == (columns[0] + before,)
            assert "tower" not in pruning.stats.timer.ms()
    assert (len(passes), len(calls)) == alone


@pytest.mark.parametrize(
    ("family", "positions"),
    [("llava_onevision", "kept"), ("llava_video", "kept"), ("qwen2_5_vl", "stock"), ("qwen3_vl", "stock")],
)
def test_other_rules_for_positions(family: str, positions: str) -> None:
    model, processor = build(family)
    with tango.prune(model, "uniform", retention_ratio=0.3, positions=positions):
        encoded = tango.encode(model, processor, video())
        for question, history in ((QUESTIONS[0], ()), (QUESTIONS[1], HISTORY)):
            ids, logits = generated(model, tango.prepare(processor, video(), question, history=history))
            with prefilled(model) as columns:
                own, own_logits = generated(model, tango.prepare(processor, encoded, question, history=history))
            assert own == ids
            assert columns[0] == after_the_video(model, tango.prepare(processor, encoded, question, history=history))
            torch.testing.assert_close(own_logits, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("marks", ["nested", "flat"])
@pytest.mark.parametrize("told", [None, "frames"])
def test_how_the_prompt_was_told_to_be_written_holds_for_every_question(marks: str, told: str | None) -> None:
    model, processor = build("qwen3_vl")
    reading: dict[str, Any] = {"vision_marks": marks, "time_instruction": told}
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video(), **reading)
        for question in QUESTIONS:
            wanted = tango.prepare(processor, video(), question, **reading)
            given = tango.prepare(processor, encoded, question)
            assert given["input_ids"].tolist() == wanted["input_ids"].tolist()
            assert generated(model, given)[0] == generated(model, wanted)[0]


@pytest.mark.filterwarnings(
    "ignore:frames without times", "ignore:neither second_per_grid_ts", "ignore:second_per_grid_ts looks"
)
@pytest.mark.parametrize("family", ["llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_vl"])
def test_frames_without_times_and_stock_processors(family: str) -> None:
    model, processor = build(family)
    frames = video(5).frames.numpy()
    for one in (processor, *([] if family == "llava_video" else [processor.stock()])):  # stock knows no such newlines
        with tango.prune(model, "uniform", retention_ratio=0.3):
            for options in ({}, {"fps": 2.0, "num_frames": 4}):
                encoded = tango.encode(model, one, frames, **options)
                wanted = tango.prepare(one, frames, QUESTIONS[0], **options)
                given = tango.prepare(one, encoded, QUESTIONS[0])
                assert given["input_ids"].tolist() == wanted["input_ids"].tolist()
                assert generated(model, given)[0] == generated(model, wanted)[0]


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "beams": lambda: {"num_beams": 2},
    "samples": lambda: {"num_return_sequences": 2, "do_sample": True},
    "no cache": lambda: {"use_cache": False},
    "static": lambda: {"cache_implementation": "static"},
    "prompt lookup": lambda: {"prompt_lookup_num_tokens": 2},
    "chunks": lambda: {"prefill_chunk_size": 7},
}


# transformers 5.17 cannot cut M-RoPE's positions into chunks.
CASES = [(f, o) for f in ("llava_onevision", "qwen3_vl") for o in OPTIONS if (f, o) != ("qwen3_vl", "chunks")]


@pytest.mark.parametrize(("family", "option"), CASES)
def test_other_caches_and_loops_prefill_the_whole_prompt(family: str, option: str) -> None:
    model, processor = build(family)
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
        outputs = []
        for shown in (video(), encoded):
            inputs = tango.prepare(processor, shown, QUESTIONS[0])
            torch.manual_seed(0)
            with prefilled(model) as columns:
                outputs.append(generate_output(model, inputs, **{**GREEDY, **OPTIONS[option]()}).tolist())
            outputs.append(columns)
    assert outputs[:2] == outputs[2:]


def test_a_cache_of_the_callers_own_is_continued() -> None:
    model, processor = build()
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
        inputs = tango.prepare(processor, encoded, QUESTIONS[0])
        first = generate_output(model, inputs, **GREEDY, return_dict_in_generate=True)
        cache, name = first[cache_argument(model)], cache_argument(model)
        more = torch.cat([first.sequences, torch.tensor([[65, 66, 67]])], dim=1)
        inputs["input_ids"], inputs["attention_mask"] = more, torch.ones_like(more)
        expected = generated(model, inputs)[0]
        with prefilled(model) as columns:
            assert generated(model, inputs, **{name: cache})[0] == expected
        assert columns[0] == 4  # the last token of the answer, and the three


def test_another_beginning_is_prefilled_as_a_whole() -> None:
    """A prefix is used by its ids and positions, never by trust."""
    model, processor = build("qwen2_5_vl")
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
        assert encoded.prefix is not None
        given = tango.prepare(processor, encoded, QUESTIONS[0])
        given["second_per_grid_ts"] = given["second_per_grid_ts"] * 3  # other positions of the same ids
        given["video_timestamps_s"] = [3 * times for times in given["video_timestamps_s"]]
        wanted = {**given, "pixel_values_videos": tango.prepare(processor, video(), "")["pixel_values_videos"]}
        processor.chat_template = "Talk: " + processor.chat_template
        others = [(given, type(given)(wanted))]
        others.append((tango.prepare(processor, encoded, "?"), tango.prepare(processor, video(), "?")))
        for own, whole in others:
            with prefilled(model) as columns:
                ids, logits = generated(model, own)
            assert columns[0] > encoded.tokens_after
            expected, expected_logits = generated(model, whole)
            assert ids == expected
            torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-3)


def test_layers_with_sliding_windows_keep_no_prefix() -> None:
    model, processor = build()
    text = model.config.text_config
    text.layer_types, text.sliding_window = ["sliding_attention", *text.layer_types[1:]], 4096
    model = type(model)(model.config).eval()
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
        assert encoded.prefix is None
        assert encoded.prefix_bytes == 0
        wanted = tango.answer(model, processor, video(), QUESTIONS[0], **GREEDY)
        assert tango.answer(model, processor, encoded, QUESTIONS[0], **GREEDY) == wanted


def test_what_is_kept_and_that_it_stays_as_it_is() -> None:
    """Answers in any order, drawn-out ones among them, and none changes what the next is made from."""
    model, processor = build("qwen3_vl")
    text = model.config.text_config
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
        wanted = {q: tango.answer(model, processor, video(), q, max_new_tokens=9) for q in QUESTIONS}
        tensors = [encoded.pruned.features, *encoded.pruned.keep_masks, *encoded.pruned.deeper[0]]
        tensors += [x for layer in encoded.prefix.layers for x in layer]
        before = [x.clone() for x in tensors]
        for question in (*QUESTIONS, *reversed(QUESTIONS)):
            assert tango.answer(model, processor, encoded, question, max_new_tokens=9) == wanted[question]
            tango.answer(model, processor, encoded, question, num_beams=2, history=HISTORY, **GREEDY)
    assert all(torch.equal(*pair) for pair in zip(tensors, before, strict=True))
    kept, deeper = encoded.tokens_after, len(encoded.pruned.deeper[0])
    assert encoded.token_bytes == (1 + deeper) * kept * text.hidden_size * 4 + encoded.tokens_before
    n = encoded.prefix.input_ids.shape[1]
    groups = text.num_key_value_heads
    assert encoded.prefix_bytes == 2 * text.num_hidden_layers * groups * text.head_dim * n * 4
    assert encoded.outline.video.frames.untyped_storage().nbytes() == 1
    assert encoded.pruned.features.untyped_storage().nbytes() == kept * text.hidden_size * 4
    assert repr(encoded).startswith(f"<EncodedVideo, uniform: {encoded.tokens_before} -> {kept} visual tokens, ")


def test_two_threads_ask_about_one_video() -> None:
    model, processor = build("qwen2_5_vl")
    wrong: list[str] = []
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
        wanted = {q: tango.answer(model, processor, video(), q, **GREEDY) for q in QUESTIONS}

        def ask(question: str) -> None:
            for _ in range(4):
                if tango.answer(model, processor, encoded, question, **GREEDY) != wanted[question]:
                    wrong.append(question)

        threads = [threading.Thread(target=ask, args=(question,)) for question in QUESTIONS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_direct_call() -> None:
    model, processor = build("qwen3_vl")
    with tango.prune(model, "uniform", retention_ratio=0.3), torch.no_grad():
        encoded = tango.encode(model, processor, video())
        wanted = model(**tango.prepare(processor, video(), QUESTIONS[0])).logits
        own = model(**tango.prepare(processor, encoded, QUESTIONS[0])).logits
    torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def mini() -> tuple[Any, ChatProtocol]:
    return tango.load("tango-mini")


@pytest.mark.parametrize("method", [name for name in available_pruners() if name != "cdpruner"])
def test_real_answers_of_every_method(method: str, mini: tuple[Any, ChatProtocol], tmp_path: Path) -> None:
    model, processor = mini
    path = clip_file(tmp_path, 3)
    questions = ("what color is plain", "how many objects", "what pattern is the first")
    with tango.prune(model, method, retention_ratio=0.2):
        encoded = tango.encode(model, processor, path)
        answers = [tango.answer(model, processor, encoded, question) for question in questions]
        assert answers == [tango.answer(model, processor, path, question) for question in questions]
    assert answers[0]


def test_stock_processors_are_taken_as_they_are() -> None:
    model, processor = build("llava_next_video")
    assert not isinstance(processor, ChatProtocol)
    with tango.prune(model, "uniform", retention_ratio=0.3):
        texts = [tango.answer(model, one, tango.encode(model, one, video()), QUESTIONS[0], **GREEDY)
                 for one in (processor, WrappedProcessor(processor))]  # fmt: skip
    assert texts[0] == texts[1]
