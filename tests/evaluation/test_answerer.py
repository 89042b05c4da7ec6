"""`Answerer` on real tiny checkpoints and real clips: answers, counts, errors, batches, journal."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tango
from tango.errors import MissingSignalError, OptionError, TangoError, UnknownNameError
from tango.evaluation import Answer, Answerer, MethodConfig, Question
from tango.profiling import STAGES
from tango.runtime.answering import generate_ids
from tango.video.reading import read_video
from tests.evaluation.conftest import FRAMES, ask

PRUNED = MethodConfig(method="tango", options={"retention_ratio": 0.3}, saliency="attn")
MODELS = ["llava-ov", "llava-video", "qwen2.5-vl"]


def answered(answerer: Answerer, asked: list[Question]) -> list[Answer]:
    """Answers, without what differs from run to run."""
    return [replace(a, stages_ms={}, elapsed_ms=0.0, peak_bytes=0, cached=False) for a in answerer.answers(asked)]


@pytest.mark.parametrize("method", [MethodConfig(), PRUNED], ids=lambda method: method.label)
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_tango_answer(files, questions, name, method):
    with Answerer(str(files / name), method=method) as answerer:
        answers = list(answerer.answers(questions))
    model, processor = tango.load(files / name)
    with method.apply(model):
        for question, answer in zip(questions, answers, strict=True):
            if answer.error is None:
                video, text = question.messages[0]["content"]
                options = {"num_frames": FRAMES, "max_new_tokens": 6}
                assert answer.text == tango.answer(model, processor, video["video"], text["text"], **options)
    assert [answer.error is None for answer in answers] == [True, True, False, True, True, True]
    assert len({answer.text for answer in answers}) > 2


@pytest.mark.parametrize("method", [MethodConfig(), PRUNED], ids=lambda method: method.label)
@pytest.mark.parametrize("name", MODELS)
def test_batches_and_read_ahead_change_no_answer(files, questions, name, method):
    with Answerer(str(files / name), method=method, workers=0) as answerer:
        one_by_one = answered(answerer, questions)
    with Answerer(str(files / name), method=method, batch_size=3, workers=3, max_ahead=4) as answerer:
        assert answered(answerer, questions) == one_by_one


def test_counts_and_stages_are_those_of_the_question(files):
    asked = [ask(files / "0.mp4", num_frames=4), ask(files / "1.mp4", "Who is it?", num_frames=6)]
    with Answerer(str(files / "llava-ov"), method=PRUNED, batch_size=2) as answerer:
        answers = list(answerer.answers(asked))
        efficiency = answerer.efficiency()
    model, processor = tango.load(files / "llava-ov")
    for question, answer in zip(asked, answers, strict=True):
        with PRUNED.apply(model) as pruning:
            video, text = question.messages[0]["content"]
            options = {"num_frames": question.num_frames, "max_new_tokens": 1}
            tango.answer(model, processor, video["video"], text["text"], **options)
            assert answer.visual_tokens_before == pruning.stats.tokens_before == question.num_frames * 16
            assert answer.visual_tokens_after == pruning.stats.tokens_after
            assert (answer.input_tokens,) == pruning.stats.prompt_after
        assert answer.output_tokens == 6
        assert set(answer.stages_ms) == set(STAGES)
        assert answer.peak_bytes > 2**20
    model_stages = [stage for stage in STAGES if stage not in ("read", "preprocess")]
    assert [answers[0].stages_ms[s] for s in model_stages] == [answers[1].stages_ms[s] for s in model_stages]  # shared
    assert answers[0].elapsed_ms == answers[1].elapsed_ms > 0
    assert (efficiency.samples, efficiency.measured, efficiency.decoded_tokens) == (2, 2, 10)


def test_all_tokens_take_the_same_stages(files):
    with Answerer(str(files / "llava-ov")) as answerer:
        answer = answerer.answer(ask(files / "0.mp4"))
    assert set(answer.stages_ms) == set(STAGES)
    assert answer.visual_tokens_after == answer.visual_tokens_before == FRAMES * 16


def test_a_method_inside_the_llm_lets_all_tokens_in(files):
    method = MethodConfig(method="fastv", options={"retention_ratio": 0.5, "layer": 1})
    with Answerer(str(files / "llava-ov"), method=method) as answerer:
        answer = answerer.answer(ask(files / "0.mp4"))
        layer = answerer.pruning.stats.layer
    assert answer.visual_tokens_after == answer.visual_tokens_before == FRAMES * 16
    assert answer.mean_visual_tokens == pytest.approx(layer.mean_retention_ratio * FRAMES * 16)
    assert answer.mean_visual_tokens == pytest.approx(FRAMES * 16 / 2, abs=1)


def test_an_answer_of_one_token_was_not_decoded(files):
    with Answerer(str(files / "llava-ov")) as answerer:
        answer = answerer.answer(ask(files / "0.mp4", max_new_tokens=1))
        assert answer.output_tokens == 1
        assert set(answer.stages_ms) == set(STAGES) - {"decoding"}
        assert answerer.efficiency().rows()["Avg_Decoding_Throughput (token/s)"] is None


def test_the_token_that_ends_an_answer_counts_and_what_fills_up_does_not(files):
    with Answerer(str(files / "llava-ov"), batch_size=2) as answerer:
        asked = [ask(files / "0.mp4", max_new_tokens=8), ask(files / "1.mp4", "Why?", max_new_tokens=8)]
        first, second = (generate_ids(answerer.model, answerer._prepare(q).inputs, max_new_tokens=8)[0] for q in asked)
        [end] = set(first[:3].tolist()) - set(second.tolist()) - set(first[:2].tolist())
        answerer.model.generation_config.eos_token_id = [end]  # the first answer now ends with its third token
        assert [answer.output_tokens for answer in answerer.answers(asked)] == [3, 8]


class TestConversations:
    def prompts(self, files: Path, name: str, question: Question) -> str:
        with Answerer(str(files / name)) as answerer:
            inputs = answerer._prepare(question).inputs
            assert answerer.answer(question).error is None
            return answerer.processor.tokenizer.decode(inputs["input_ids"][0])

    def test_system_several_videos_and_first_words(self, files):
        videos = [{"type": "video", "video": str(files / f"{i}.mp4")} for i in (0, 1)]
        content = [{"type": "text", "text": "Look: "}, videos[0], {"type": "text", "text": "or"}, videos[1]]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
        question = Question(messages=messages, prefill="Best option:(", num_frames=2, max_new_tokens=2)
        prompt = self.prompts(files, "llava-ov", question)
        video = "<video>" * (2 * 16 + 1)
        assert prompt == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
            f"Look: {video}\nor{video}\n<|im_end|>\n<|im_start|>assistant\nBest option:("
        )

    def test_llava_video_reads_the_times_before_the_text_after_each_video(self, files):
        videos = [{"type": "video", "video": str(files / f"{i}.mp4")} for i in (0, 1)]
        content = [{"type": "text", "text": "First "}, videos[0], {"type": "text", "text": "then "}, videos[1]]
        question = Question(messages=[{"role": "user", "content": content}], num_frames=2, max_new_tokens=1)
        before, middle, end = self.prompts(files, "llava-video", question).replace("<video><", "<").split("<video>\n")
        assert "First" in before
        assert "seconds" not in before
        for part, seconds in ((middle, "0.80"), (end, "1.08")):
            assert part.startswith(f"The video lasts for {seconds} seconds,and 2 frames")
        assert middle.split("\n", 1)[1].startswith("then ")

    def test_the_prompt_of_one_video_is_that_of_prepare(self, files):
        for name in MODELS:
            with Answerer(str(files / name)) as answerer:
                inputs = answerer._prepare(ask(files / "0.mp4")).inputs
                expected = tango.prepare(answerer.processor, files / "0.mp4", "What happens?", num_frames=FRAMES)
            assert inputs.keys() == expected.keys()
            for key, value in expected.items():
                for a, b in zip(inputs[key], value, strict=True):
                    assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))

    def test_without_a_video(self, files):
        text_only = Question(messages=[{"role": "user", "content": "Who are you?"}], max_new_tokens=3)
        with Answerer(str(files / "qwen2.5-vl"), batch_size=2) as answerer:
            answers = list(answerer.answers([text_only, ask(files / "0.mp4"), text_only]))
            assert [answer.error for answer in answers] == [None] * 3
            assert answers[0].text == answers[2].text != ""
            assert answers[0].visual_tokens_before == 0
            assert answers[0].input_tokens > 5
            assert answerer.efficiency().measured == 1

    def test_images_are_an_error_of_their_question(self, files):
        image = Question(messages=[{"role": "user", "content": [{"type": "image", "image": "x.png"}]}])
        with Answerer(str(files / "llava-ov")) as answerer:
            refused, fine = answerer.answers([image, ask(files / "0.mp4")])
        assert refused.error == (
            "ValueError: parts must be of type video or text, got 'image'; images can be asked about where they are "
            "pruned, too (images=on)"
        )
        assert fine.error is None

    def test_images_that_are_pruned(self, files, tmp_path):
        questions = []
        for i, size in enumerate(((112, 84), (84, 168))):
            pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            content = [
                {"type": "image", "image": str(tmp_path / f"{i}.png")},
                {"type": "text", "text": "What?" * (i + 1)},
            ]
            questions.append(Question(messages=[{"role": "user", "content": content}], max_new_tokens=4))
        questions.append(ask(files / "0.mp4"))
        method = MethodConfig.from_settings({"method": "uniform", "retain_ratio": "0.25", "images": "on"})
        found = []
        for batch_size in (1, 2):
            with Answerer(str(files / "qwen2.5-vl"), method=method, batch_size=batch_size) as answerer:
                found.append(list(answerer.answers(questions)))
        for one, two in zip(*found, strict=True):
            assert one.error is None
            assert one.text == two.text
            assert one.visual_tokens_before == two.visual_tokens_before > 4 * one.visual_tokens_after - 4 > 0
            assert one.visual_tokens_after == two.visual_tokens_after

    def test_a_reserved_token_is_an_error_of_its_question(self, files):
        bad = ask(files / "0.mp4", "Is <video> a tag?")
        with Answerer(str(files / "llava-ov")) as answerer:
            refused, fine = answerer.answers([bad, ask(files / "0.mp4")])
        assert refused.error.startswith("PromptError: the text of message 0 (user) holds '<video>'")
        assert fine.error is None

    def test_frames_in_place_of_a_file(self, files, tmp_path):
        video = read_video(files / "0.mp4", num_frames=FRAMES)
        images = [Image.fromarray(frame) for frame in video.frames.numpy()]
        for i, image in enumerate(images):
            image.save(tmp_path / f"{i}.png")
        paths = [str(tmp_path / f"{i}.png") for i in range(FRAMES)]
        forms = [str(tmp_path), images, paths, video.frames.numpy(), video]
        asked = [ask(form) for form in forms]
        assert len({question.key for question in asked}) == len(forms)
        assert ask([*images[1:], images[0]]).key != asked[1].key
        assert ask([image.copy() for image in images]).key == asked[1].key
        uniform = MethodConfig(method="uniform", options={"retention_ratio": 0.5})
        with Answerer(str(files / "llava-ov"), method=uniform, workers=0) as answerer:
            answers = list(answerer.answers(asked))
            prepared = [answerer._prepare(question).inputs for question in asked]
        assert [answer.error for answer in answers] == [None] * len(forms)
        assert all(torch.equal(one["pixel_values_videos"], prepared[0]["pixel_values_videos"]) for one in prepared)
        assert prepared[0]["video_timestamps_s"][0].tolist() == [i / 3 for i in range(FRAMES)]
        assert ["video_timestamps_s" in one for one in prepared] == [True, False, False, False, True]

    def test_texts_are_cut_at_stop_strings(self, files):
        with Answerer(str(files / "llava-ov")) as answerer:
            whole = answerer.answer(ask(files / "0.mp4")).text
            cut = answerer.answer(ask(files / "0.mp4", generate_options={"until": [whole[2]], "num_beams": 1})).text
        assert cut == whole.split(whole[2])[0].strip() != whole


class TestSampling:
    def test_depends_on_the_question_alone(self, files):
        options = {"generate_options": {"temperature": 1.5}, "max_new_tokens": 12}
        asked = [ask(files / "0.mp4", f"What{i}?", **options) for i in range(3)]
        state = torch.random.get_rng_state()
        with Answerer(str(files / "llava-ov"), batch_size=3) as answerer:
            forwards = [answer.text for answer in answerer.answers(asked)]
            backwards = [answer.text for answer in answerer.answers(asked[::-1])]
        assert forwards == backwards[::-1]
        assert len(set(forwards)) == 3
        assert torch.equal(torch.random.get_rng_state(), state)


class TestErrors:
    def test_an_unreadable_video_costs_its_own_answer(self, files, questions, caplog):
        with Answerer(str(files / "llava-ov"), batch_size=4) as answerer:
            answers = list(answerer.answers(questions))
            assert answers[2].error.startswith(f"VideoReadError: cannot read video '{files / 'broken.mp4'}': ")
            assert answers[2].text == ""
            assert sum(answer.error is None for answer in answers) == 5
            efficiency = answerer.efficiency()
        assert (efficiency.samples, efficiency.failures) == (6, 1)
        assert "broken.mp4" in caplog.text

    def test_too_little_memory_for_a_batch_is_none_for_its_questions(self, files, questions, caplog):
        with Answerer(str(files / "llava-ov"), workers=0) as answerer:
            expected = answered(answerer, questions)
        with Answerer(str(files / "llava-ov"), batch_size=3) as answerer:
            sizes = []

            def limit(_module, _args, kwargs):
                sizes.append(len(kwargs["input_ids"]))
                if sizes[-1] > 1:
                    raise torch.OutOfMemoryError("too big")

            answerer.model.register_forward_pre_hook(limit, with_kwargs=True)
            assert answered(answerer, questions) == expected
        assert max(sizes) > 1
        assert "too big" not in caplog.text

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_a_question_that_fails_alone_is_the_only_one_lost(self, files, batch_size):
        asked = [ask(files / "0.mp4"), ask(files / "1.mp4", "long " * 40), ask(files / "2.mp4")]
        with Answerer(str(files / "llava-ov"), batch_size=batch_size) as answerer:

            def limit(_module, _args, kwargs):
                if kwargs["input_ids"].shape[1] > 250:
                    raise torch.OutOfMemoryError("too long")

            answerer.model.register_forward_pre_hook(limit, with_kwargs=True)
            errors = [answer.error for answer in answerer.answers(asked)]
        assert errors == [None, "OutOfMemoryError: too long", None]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_wrong_configuration_stops_the_run(self, files, workers):
        bad = ask(files / "1.mp4", generate_options={"colour": 1})
        with Answerer(str(files / "llava-ov"), workers=workers) as answerer:
            answers = answerer.answers([ask(files / "0.mp4"), bad, ask(files / "2.mp4")])
            assert next(answers).error is None
            with pytest.raises(OptionError, match="no option colour"):
                next(answers)

    # Older torch has no error of its own for a GPU that is lost.
    @pytest.mark.parametrize("error", [KeyboardInterrupt, AssertionError, getattr(torch, "AcceleratorError", KeyError)])
    def test_interrupts_defects_and_a_lost_gpu_come_through(self, files, error):
        with Answerer(str(files / "llava-ov"), batch_size=2) as answerer:

            def fail(*_args):
                raise error

            answerer.model.register_forward_pre_hook(fail)
            with pytest.raises(error):
                answerer.answer(ask(files / "0.mp4"))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"batch_size": 0}, OptionError, "batch_size must be at least 1, got 0"),
            ({"max_ahead": 0}, OptionError, "max_ahead must be at least 1"),
            ({"num_frames": 0}, OptionError, "num_frames must be at least 1"),
            ({"workers": -1}, OptionError, "workers must be at least 0, got -1"),
            ({"video_backend": "vhs"}, UnknownNameError, "Known: auto, decord"),
            ({"time_instruction": "seconds"}, UnknownNameError, "Known: frames, none, release"),
            ({"max_pixels": 4000}, OptionError, "max_pixels are for Qwen-VL"),
        ],
    )
    def test_arguments_that_cannot_be(self, files, options, error, message):
        with pytest.raises(error, match=message):
            Answerer(str(files / "llava-ov"), **options)

    def test_a_method_that_the_model_cannot_have(self, files):
        with pytest.raises(MissingSignalError, match="tango"):
            Answerer(str(files / "llava-video"), method=MethodConfig(method="tango"))


def test_stopping_early_ends_the_threads(files):
    with Answerer(str(files / "llava-ov"), workers=2) as answerer:
        answers = answerer.answers(ask(files / "0.mp4") for _ in range(1000))
        next(answers)
        answers.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("tango-read-ahead")]


def test_closing_restores_the_model(files):
    answerer = Answerer(str(files / "llava-ov"), method=PRUNED)
    assert "generate" in vars(answerer.model)
    answerer.close()
    answerer.close()
    assert "generate" not in vars(answerer.model)


def test_limits_of_a_frames_size_reach_the_processor(files):
    sizes = []
    for limits in ({}, {"min_pixels": 28 * 28, "max_pixels": 4 * 28 * 28}):
        with Answerer(str(files / "qwen2.5-vl"), **limits) as answerer:
            sizes.append(answerer.answer(ask(files / "0.mp4")).visual_tokens_before)
    assert sizes[1] <= 3 * 4 < sizes[0]


def test_progress_goes_to_stderr_alone(files, questions, capsys):
    with Answerer(str(files / "llava-ov")) as answerer:
        capsys.readouterr()
        list(answerer.answers(iter(questions[:2]), progress=True, total=2))
        out, err = capsys.readouterr()
        assert out == ""
        assert "2/2" in err
        assert "sample" in err
        list(answerer.answers(questions[:2]))
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["llava-ov", "qwen2.5-vl"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_static_cache_gives_the_same_answers(files, questions, name, batch_size):
    """Questions of unequal length, one of them without a video that can be read."""
    options = {"method": PRUNED, "batch_size": batch_size}
    with Answerer(str(files / name), **options) as answerer:
        expected = [(answer.text, answer.error) for answer in answerer.answers(questions)]
    with Answerer(str(files / name), static_cache=True, **options) as answerer:
        assert [(answer.text, answer.error) for answer in answerer.answers(questions)] == expected
        assert answerer.config["static_cache"] is True
        assert answerer.model._previous_max_cache_length > 0  # there was one
    assert not hasattr(answerer.model, "_previous_max_cache_length")


class TestJournalled:
    def test_a_second_run_computes_nothing_but_the_failures(self, files, questions, tmp_path):
        with Answerer(str(files / "llava-ov"), method=PRUNED, journal=tmp_path) as answerer:
            first = list(answerer.answers(questions))
            table = answerer.efficiency().rows()
        with Answerer(str(files / "llava-ov"), method=PRUNED, journal=tmp_path, rank=1, batch_size=2) as answerer:
            again = list(answerer.answers(questions))
            efficiency = answerer.efficiency()
        assert [answer.cached for answer in again] == [answer.error is None for answer in first]
        assert [replace(a, cached=False) for a in again if a.error is None] == [a for a in first if a.error is None]
        assert (efficiency.resumed, efficiency.failures) == (5, 1)
        times = [name for name in table if name.startswith("Avg") or "GPU" in name]
        assert {name: efficiency.rows()[name] for name in times} == {name: table[name] for name in times}

    def test_another_method_or_model_needs_another_folder(self, files, questions, tmp_path):
        with Answerer(str(files / "llava-ov"), journal=tmp_path) as answerer:
            answerer.answer(questions[0])
        for name, options in (
            ("llava-ov", {"method": PRUNED}), ("llava-video", {}), ("llava-ov", {"num_frames": 9}),
            ("llava-ov", {"dtype": "bfloat16"}), ("llava-ov", {"attn_implementation": "eager"}),
        ):  # fmt: skip
            with pytest.raises(TangoError, match="another configuration"):
                Answerer(str(files / name), journal=tmp_path, **options)

    def test_the_configuration_says_what_was_run(self, files):
        with Answerer(str(files / "llava-video"), method=PRUNED) as answerer:
            config = answerer.config
        assert config["pretrained"] == str(files / "llava-video")
        assert config["method"]["options"]["retention_ratio"] == 0.3
        assert (config["num_frames"], config["dtype"], config["device"]) == (64, "float32", "cpu")
        assert config["time_instruction"] == "frames"
        assert config["environment"]["versions"]["tango"] == tango.__version__
