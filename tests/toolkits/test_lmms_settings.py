"""What lmms-eval's adapter makes of arguments and requests, without launching anything."""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from tango import OptionError, TangoError


@pytest.fixture(scope="module")
def settings() -> ModuleType:
    from tango_lmms_eval import settings

    return settings


@pytest.fixture(scope="module")
def questions() -> ModuleType:
    from tango_lmms_eval import questions

    return questions


def test_the_readmes_arguments_give_the_methods_defaults(settings: ModuleType):
    told = {
        "pretrained": "lmms-lab/llava-onevision-qwen2-7b-ov",
        "conv_template": "qwen_1_5",
        "model_name": "llava_qwen",
        "attn_implementation": "flash_attention_2",
        "batch_size": "1",
    }
    read = settings.read_settings(told, {"WRAPPER": "tango", "PATH": "/bin"})
    assert (read.method.method, read.method.label) == ("tango", "tango-r0.1")
    assert read.arguments == {
        "pretrained": told["pretrained"], "attn_implementation": "flash_attention_2", "batch_size": 1
    }  # fmt: skip
    assert read.journal == ""
    assert settings.read_settings(told, {}).method.method == "none"


def test_arguments_go_before_the_environment(settings: ModuleType):
    told = {"pretrained": "x", "retain_ratio": 0.2, "max_frames_num": 16, "journal": "none"}
    around = {"WRAPPER": "tango", "TANGO_RETENTION_RATIO": "0.3", "TANGO_ALPHA": "2.0", "TANGO_NUM_FRAMES": "8",
              "TANGO_WORKERS": "0", "TANGO_JOURNAL": "kept"}  # fmt: skip
    read = settings.read_settings(told, around)
    assert read.method.to_dict()["options"]["retention_ratio"] == 0.2
    assert read.method.to_dict()["options"]["alpha"] == 2.0
    assert read.arguments == {"pretrained": "x", "num_frames": 16, "workers": 0}
    assert read.journal is None
    assert settings.read_settings({"pretrained": "x"}, around).journal == "kept"


def test_what_lmms_eval_makes_of_model_args_means_the_same(settings: ModuleType):
    from lmms_eval.utils import simple_parse_args_string

    from tango.methods import Plan

    texts = {"base_time": "1e4", "alpha": "2.0", "num_neighbors": "1e1", "kernels": "off", "exact_budget": "1",
             "rope_sections": "2:3:4", "segment_threshold": "None", "rope": "none", "pruned_layer": "18"}  # fmt: skip
    told = simple_parse_args_string(",".join(["pretrained=x", *(f"{name}={text}" for name, text in texts.items())]))
    assert told["kernels"] == "off"
    assert isinstance(told["num_neighbors"], float)
    assert settings.read_settings(told, {"WRAPPER": "tango"}).method.plan == Plan.parse(texts, method="tango")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wrapper": "tangos"}, "unknown method 'tangos'"),
        ({"retain_ration": 0.1}, "retain_ration; arguments of the model are: .*num_frames"),
        ({"wrapper": "none", "max_frame_num": 8}, "max_frame_num; arguments of the model are"),
        ({"retain_ratio": 1.5}, r"\(0, 1\].*1\.5"),
        ({"batch_size": "auto"}, "batch_size must be a whole number.*'auto'"),
        ({"max_frames_num": 8.5}, "max_frames_num must be a whole number"),
        ({"local_files_only": "perhaps"}, "local_files_only must be true or false, got 'perhaps'"),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride=4 is not supported.*mm_spatial_pool_stride=2"),
        ({"conv_template": "vicuna_v1"}, "conv_template=vicuna_v1 is not supported"),
        ({"pretrained": None}, "pretrained"),
    ],
)
def test_mistakes_name_what_was_expected(settings: ModuleType, changes: dict[str, Any], said: str):
    told = {name: value for name, value in {"pretrained": "x", **changes}.items() if value is not None}
    with pytest.raises(TangoError, match=said):
        settings.read_settings(told, {"WRAPPER": "tango"} if "wrapper" not in changes else {})


def test_arguments_that_describe_one_model_are_known_to_it_alone(settings: ModuleType):
    told = {"pretrained": "x", "mm_spatial_pool_mode": "average"}
    assert settings.read_settings(told, {}, describes={"mm_spatial_pool_mode": ("average",)}).arguments == {
        "pretrained": "x"
    }
    with pytest.raises(TangoError, match="not supported: this model works as with mm_spatial_pool_mode=bilinear"):
        settings.read_settings(told, {}, describes={"mm_spatial_pool_mode": ("bilinear",)})
    with pytest.raises(TangoError, match="mm_spatial_pool_mode"):
        settings.read_settings(told, {})


def test_runs_whose_answers_may_differ_have_names_of_their_own(settings: ModuleType):
    def name(wrapper: str = "tango", **told: Any) -> str:
        return settings.read_settings({"pretrained": "x", **told}, {"WRAPPER": wrapper}).name

    assert name() == name(workers=0, max_ahead=2, device="cpu")
    different = [name(), name(pretrained="y"), name(alpha=2.0), name(num_frames=8), name(dtype="float16"), name("none")]
    assert len(set(different)) == len(different)
    assert name().startswith("tango-r0.1-")


def test_generation_settings_of_tasks(questions: ModuleType):
    messages = questions.simple_messages("What?", ["/clips/a.mp4"])
    assert messages == [
        {"role": "user", "content": [{"type": "video", "video": "/clips/a.mp4"}, {"type": "text", "text": "What?"}]}
    ]
    videomme = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    greedy = questions.build(messages, {**videomme, "until": ["\n\n"]}, 1024)
    assert (greedy.max_new_tokens, dict(greedy.generate_options)) == (16, {"num_beams": 1})
    sampled = questions.build(messages, {"temperature": 0.7, "top_p": 0.9, "until": "Q:", "modalities": []}, 1024)
    assert sampled.max_new_tokens == 1024
    assert sampled.generate_options == {
        "num_beams": 1, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": ["Q:"]
    }  # fmt: skip
    assert questions.build(messages, {"max_gen_toks": 5, "num_beams": 3}, 1024).max_new_tokens == 5


def test_chats_keep_their_turns(questions: ModuleType):
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "video", "url": "a.mp4"}, {"type": "text", "text": "What?"}]},
    ]
    assert questions.chat_messages(chat) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]},
    ]
    with pytest.raises(OptionError, match="audio"):
        questions.chat_messages([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}])
    with pytest.raises(OptionError, match="whole videos"):
        questions.chat_messages([{"role": "user", "content": [{"type": "video", "url": "a.mp4", "start_time": 2.0}]}])


def test_only_videos_and_images_can_be_shown(questions: ModuleType):
    picture = Image.new("RGB", (4, 4))
    assert questions.media_part(picture) == {"type": "image", "image": picture}
    with pytest.raises(OptionError, match="dict"):
        questions.media_part({"array": [0.0], "sampling_rate": 16000})


def test_several_images_are_the_frames_of_one_video(questions: ModuleType):
    frames = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)]
    text = {"type": "text", "text": "What?"}
    assert questions.simple_messages("What?", frames)[0]["content"] == [{"type": "video", "video": frames}, text]
    chat = [{"role": "user", "content": [*({"type": "image", "url": frame} for frame in frames), text]}]
    assert questions.chat_messages(chat)[0]["content"] == [{"type": "video", "video": frames}, text]
    assert questions.simple_messages("What?", frames[:1])[0]["content"] == [{"type": "image", "image": frames[0]}, text]


class Task:
    """As much of a task as requests carry along."""

    def __init__(self, **args: Any):
        self.args = Namespace(**{"model": "llava_onevision", "timezone": "UTC", "use_cache": None, **args})

    def doc_to_visual(self, document: dict[str, Any]) -> list[str]:
        return [document["path"]]

    def request(self) -> Namespace:
        return Namespace(args=("What?", {}, self.doc_to_visual, 0, "videomme", "test"))


@pytest.fixture(scope="module")
def output() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lmms-eval's own
        from tango_lmms_eval import output
    return output


def test_files_go_where_lmms_eval_puts_its_own(settings: ModuleType, output: ModuleType):
    told = {"output_path": "logs", "model_args": "pretrained=some/where/llava-ov,batch_size=1"}
    chosen = settings.read_settings({"pretrained": "some/where/llava-ov"}, {"WRAPPER": "tango"})
    found = output.Output.of([Task(**told).request()], chosen)
    assert found.folder == Path("logs/where__llava-ov")
    assert found.journal == Path("logs/where__llava-ov/journals") / chosen.name
    own = settings.read_settings({"pretrained": "x", "journal": "kept"}, {})
    assert output.Output.of([Task(**told).request()], own).journal == Path("kept")
    nowhere = output.Output.of([Task(output_path=None, model_args="").request()], chosen)
    assert (nowhere.folder, nowhere.journal) == (None, None)


def test_lmms_evals_own_cache_is_refused(settings: ModuleType, output: ModuleType):
    request = Task(output_path="logs", model_args="pretrained=x", use_cache="cache").request()
    with pytest.raises(TangoError, match="WRAPPER"):
        output.Output.of([request], settings.read_settings({"pretrained": "x"}, {"WRAPPER": "tango"}))
