"""SmolVLM2's own: prompts and pixels are stock's where stock is right, the tower's positions, signals, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

import tango
from tango.containers import ALL_SIGNALS, Signal
from tango.evaluation.preparation import collate
from tango.methods import KeepAllPruner
from tango.models import adapter_class, siglip
from tango.models.loading import load
from tango.models.media import MEDIA
from tango.models.pooling_head import siglip_of
from tango.models.processors.smolvlm import FAKE, IMAGE, WHOLE, number_words
from tango.profiling import StageTimer
from tests import tiny
from tests.families import Picture, Video, smolvlm
from tests.families.smolvlm import SIDE, N, frames_at, picture, processor, tokenizer, video

GREEDY = {"do_sample": False, "max_new_tokens": 4}
BY_HAND = {
    1: "one",
    13: "thirteen",
    20: "twenty",
    64: "sixty-four",
    100: "one hundred",
    217: "two hundred and seventeen",
}
BY_HAND |= {110: "one hundred and ten", 999: "nine hundred and ninety-nine"}
# What published checkpoints say: no parts of type "video", which it drops.
PUBLISHED_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == "
    "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def model() -> Any:
    return smolvlm.model()


@pytest.fixture(scope="module")
def adapter(model: Any) -> Any:
    return adapter_class("smolvlm")(model)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stock processor; the one function that it takes from num2words is ours."""
    pytest.importorskip("torchvision")
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", number_words)
    return processor().stock()


def text_of(inputs: Any, row: int = 0) -> str:
    kept = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    return tokenizer().decode(kept).replace(IMAGE * N, "[frame]")


def chat(*parts: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]


class TestPrompt:
    def test_is_the_trained_form(self) -> None:
        clip = frames_at(video(Video(2, 1)).frames, torch.tensor([59.9, 3671.2], dtype=torch.float64))
        frame = f"{FAKE}{WHOLE}[frame]{FAKE}"
        assert text_of(tango.prepare(processor(), clip, "What happens?")) == (
            "<|im_start|>User: You are provided the following series of two frames from a 1:01:12 [H:MM:SS] video.\n"
            f"\nFrame from 00:59:{frame}\nFrame from 61:11:{frame}\n\nWhat happens?<end_of_utterance>\nAssistant:"
        )

    def test_and_pixels_are_those_of_the_stock_processor(self, stock: Any) -> None:
        import torchvision

        clip = video(Video(5, 1))
        ours = tango.prepare(processor(), clip, "What happens?")
        text = stock.apply_chat_template(chat({"type": "video"}, "What happens?"), add_generation_prompt=True)
        meta = {"total_num_frames": 8, "fps": 1.0, "duration": 7.0, "frames_indices": [0, 1, 3, 4, 6]}
        theirs = stock(
            text=[text],
            videos=[[clip.frames.permute(0, 3, 1, 2)]],
            video_metadata=[[meta]],
            do_sample_frames=False,
            return_tensors="pt",
        )
        assert text_of(ours) == text_of(theirs)
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
        assert ours["pixel_values"].shape == theirs["pixel_values"].shape == (1, 5, 3, SIDE, SIDE)
        off = (ours["pixel_values"] - theirs["pixel_values"]).abs()
        assert float(off.mean()) < 0.06  # old torchvision has no Lanczos
        if Version(torchvision.__version__) >= Version("0.27"):
            assert float(off.max()) <= 3.1 / 127.5  # Pillow's is in integers, and rounds in other places

    def test_of_a_picture_is_that_of_the_stock_processor(self, stock: Any) -> None:
        ours = processor()(text=f"<|im_start|>User:{IMAGE}What?", images=[[picture(Picture(3))]])
        theirs = stock(text=[f"<|im_start|>User:{IMAGE}What?"], images=[[picture(Picture(3))]], return_tensors="pt")
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
        assert ours["pixel_values"].shape == theirs["pixel_values"].shape == (1, 5, 3, SIDE, SIDE)
        assert float((ours["pixel_values"] - theirs["pixel_values"]).abs().mean()) < 0.05  # Pillow's Lanczos or torch's
        assert ours[MEDIA] == [[("image", 5)]]

    def test_of_a_conversation_is_the_published_one(self, stock: Any) -> None:
        """Transformers replaces the checkpoints' template where there is a video, as that would drop it."""
        said = [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
        short = [{"role": "system", "content": [{"type": "text", "text": "Be short."}]}]
        for part in ({"type": "image"}, {"type": "video"}):
            turns = [*short, *chat(part, "What?"), *said, *chat("And", part, "why?")]
            ours = processor().apply_chat_template(turns, add_generation_prompt=True)
            named = {"chat_template": PUBLISHED_TEMPLATE} if part["type"] == "image" else {}
            assert ours == stock.apply_chat_template(turns, add_generation_prompt=True, **named)
            assert processor(template=PUBLISHED_TEMPLATE).apply_chat_template(turns) == ours[: -len("Assistant:")]

    def test_names_the_number_of_frames_of_its_own_row(self) -> None:
        given = smolvlm.inputs(("A ", Video(6, 1), " why?"), ("B ", Video(4, 2), " how?"))
        assert "series of six frames from a 0:00:08" in text_of(given, 0)
        assert "series of four frames from a 0:00:05" in text_of(given, 1)
        assert given["pixel_values"].shape == (2, 6, 3, SIDE, SIDE)
        assert not given["pixel_values"][1, 4:].any()
        assert given[MEDIA] == [[("video", 6)], [("video", 4)]]

    def test_knows_words_for_numbers(self) -> None:
        assert {n: number_words(n) for n in BY_HAND} == BY_HAND
        with pytest.raises(tango.PromptError, match="at most 999, got 1000"):
            tango.prepare(processor(), frames_at(torch.zeros(1000, 4, 4, 3).byte(), torch.arange(1000.0)), "What?")

    def test_without_times_counts_seconds_and_says_so(self) -> None:
        with pytest.warns(UserWarning, match="one second apart"):
            given = processor()(text="<video>What?", videos=video(Video(3, 1)).frames)
        assert "three frames from a 0:00:02" in text_of(given)
        assert "Frame from 00:02:" in text_of(given)
        assert "video_timestamps_s" not in given

    def test_has_no_reserved_words_from_the_user(self) -> None:
        for word in (IMAGE, "<video>", FAKE):
            with pytest.raises(tango.PromptError, match="a token with a meaning of its own"):
                tango.prepare(processor(), video(Video(2, 1)), f"What is {word}?")

    def test_without_pixels_is_the_same(self) -> None:
        whole, without = (
            processor()(text="<video>What?", videos=video(Video(3, 1)), video_pixels=pixels) for pixels in (True, False)
        )
        assert set(whole) - set(without) == {"pixel_values", "video_first_equal"}
        assert torch.equal(whole["input_ids"], without["input_ids"])
        assert whole[MEDIA] == without[MEDIA]

    def test_equal_frames_are_found_and_have_equal_pixels(self) -> None:
        clip = video(Video(4, 1))
        given = processor()(text="<video>What?", videos=frames_at(clip.frames[[0, 1, 0, 2]], clip.timestamps_s))
        assert given["video_first_equal"] == [[0, 1, 0, 3]]
        plain = processor().square(clip.frames[[0, 1, 0, 2]], range(4))
        assert torch.equal(given["pixel_values"][0], plain)


@torch.no_grad()
@pytest.mark.parametrize("patches", [27, 32])
def test_the_tower_has_every_position_once(patches: int) -> None:
    """Stock code has, too, but for 27 x 27 patches in 16 bits on transformers up to 5.20, where 288 of 729 are off."""
    tower = smolvlm.model(image_size=2 * patches, patch_size=2, scale_factor=1).model.vision_model
    full = torch.ones(1, patches, patches, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pixels = torch.randn(1, 3, 2 * patches, 2 * patches).to(dtype)
        tower.to(dtype)
        ours, theirs = siglip.embed(tower, pixels), tower.embeddings(pixels, full)
        different = int((ours != theirs).any(-1).sum())
        old = Version(transformers.__version__) < Version("5.21")
        fixed = Version(transformers.__version__) >= Version("5.23")
        if patches == 32 or dtype == torch.float32 or fixed:
            assert different == 0
        elif old and dtype == torch.bfloat16:
            assert different == 288


@torch.no_grad()
def encode(model: Any, saliency: str, *frames: int) -> list[Any]:
    given = smolvlm.inputs(*[("A ", Video(n, i), " why?") for i, n in enumerate(frames)])
    adapter = adapter_class("smolvlm")(model, saliency=saliency)
    return adapter.encode_videos(given, ALL_SIGNALS, StageTimer()).videos


def pooled(x: Tensor) -> Tensor:
    """(T, 64, C) -> (T, 16, C): means of 2 x 2 patches."""
    return x.unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1, 2)


@torch.no_grad()
def test_signals_are_those_of_the_last_block_and_of_the_pooling_head(model: Any) -> None:
    """Against eager attention, and a SigLIP whose own last norm and head see the tower's state."""
    eager = smolvlm.model()
    eager.set_attn_implementation("eager")
    pixels = torch.cat([smolvlm.inputs(("A ", Video(n, i), "?"))["pixel_values"][0] for i, n in enumerate((6, 4))])
    states, weights, tower = [], [], eager.model.vision_model
    last = tower.encoder.layers[-1]
    last.register_forward_hook(lambda _m, _a, output: states.append(output))
    last.self_attn.register_forward_hook(lambda _m, _a, output: weights.append(output[1]))
    features = torch.cat(list(eager.model.get_image_features(pixels[None], return_dict=True).pooler_output))
    [state], [weight] = states, weights
    head = smolvlm.siglip()
    normed = head.post_layernorm(state)
    probe = head.head.probe.expand(len(state), -1, -1)
    _, attended = head.head.attention(probe, normed, normed)  # (frames, 1, 64), mean over heads
    expected = {"p-attn": attended[:, 0], "attn": weight.mean((1, 2))}
    for name, per_patch in expected.items():
        videos = encode(model, name, 6, 4)
        assert [v.features.shape[:2] for v in videos] == [(6, N), (4, N)]
        saliency = torch.cat([v.saliency for v in videos])
        torch.testing.assert_close(saliency, pooled(per_patch[..., None])[..., 0], rtol=1e-4, atol=1e-6)
        embeds = torch.cat([v.frame_embeds for v in videos])
        torch.testing.assert_close(embeds, head.head(normed), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat([v.features for v in videos]).flatten(0, 1), features.flatten(0, -2))
        assert all(v.keys.shape == (v.features.shape[0], N, 8) for v in videos)
        assert videos[0].timestamps_s.tolist() == [1.5 * i for i in range(6)]


def test_pooling_heads_of_the_published_towers() -> None:
    """As SmolVLM2's model cards name their towers: 2.2B, and 256M and 500M."""
    towers = [
        smolvlm.config(hidden_size=w, patch_size=p, image_size=s) for w, p, s in ((1152, 14, 384), (768, 16, 512))
    ]
    found = [siglip_of(config.vision_config) for config in towers]
    assert found == ["google/siglip-so400m-patch14-384", "google/siglip-base-patch16-512"]
    assert siglip_of(smolvlm.config().vision_config) is None


@torch.no_grad()
def test_a_frame_without_tokens_keeps_its_time(model: Any) -> None:
    """EVS keeps what changes, here nothing in four of six frames; their marks and times stay in the prompt."""
    clip = video(Video(6, 1))
    frames = clip.frames[[0, 0, 0, 1, 1, 1]]
    given = tango.prepare(processor(), frames_at(frames, clip.timestamps_s), "What?")
    with tango.prune(model, "evs", retention_ratio=0.25) as pruning:
        assert isinstance(model.generate(**given, **GREEDY), Tensor)
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    text = tokenizer().decode(short.input_ids[0])
    runs = [piece.split(FAKE)[0].count(IMAGE) for piece in text.split(WHOLE)[1:]]
    assert len(runs) == 6
    assert sum(runs) == 24
    assert runs.count(0) >= 2
    assert text.count("\nFrame from 00:0") == 6
    assert text.replace(IMAGE, "") == tokenizer().decode(given["input_ids"][0]).replace(IMAGE, "")


class TestInputs:
    def test_pixels_that_may_be_of_anything_are_refused(self, model: Any) -> None:
        """As a stock processor makes them without times: an image's look like a video's."""
        given = smolvlm.stock(smolvlm.inputs(("A ", Picture(1), " why?")))
        expected = model.generate(**given, **GREEDY)
        with tango.prune(model, "uniform", retention_ratio=0.25) as pruning:
            for call in (lambda: model.generate(**given, **GREEDY), lambda: model(**given)):
                with pytest.raises(tango.PromptError, match="may hold images or videos: media must say which"):
                    call()
            told = {**given, MEDIA: [[("image", 5)]]}
            assert torch.equal(model.generate(**told, **GREEDY), expected)
            assert pruning.stats is None
            with pytest.raises(ValueError, match="inputs make 96 tokens"):
                model.generate(**{**given, MEDIA: [[("video", 6)]], "pixel_values": torch.zeros(1, 6, 3, SIDE, SIDE)})

    @torch.no_grad()
    def test_of_a_stock_processor_with_times_are_videos(self, model: Any) -> None:
        """One entry for every video, filled up with zeros; two videos stand in the first row."""
        given = smolvlm.inputs(("A ", Video(6, 1), " B ", Video(3, 2), " why?"), ("C ", Video(4, 3), " how?"))
        clips = [given["pixel_values"][0, :6], given["pixel_values"][0, 6:], given["pixel_values"][1, :4]]
        entries = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        like_stock = {name: value for name, value in given.items() if name not in (MEDIA, "video_first_equal")}
        like_stock |= {"pixel_values": entries, "pixel_attention_mask": torch.ones(3, 6, SIDE, SIDE)}
        with tango.prune(model, "tango", retention_ratio=0.25):
            assert torch.equal(model(**like_stock).logits, model(**given).logits)

    def test_that_do_not_match_are_refused(self, model: Any) -> None:
        given = smolvlm.inputs(("A ", Video(4, 1), " why?"))
        shifted = torch.ones(1, 4, SIDE, SIDE)
        shifted[0, 2, 50:] = 0
        for change, error, words in (
            ({"pixel_values": given["pixel_values"][:, :3]}, tango.PromptError, "begin with .*4, 3, 64, 64"),
            ({"pixel_values": given["pixel_values"][..., :49]}, tango.PromptError, "begin with .*4, 3, 64, 64"),
            ({MEDIA: [[("film", 4)]]}, tango.PromptError, "media must say which"),
            ({MEDIA: [[("video", 4)]] * 2}, tango.PromptError, "must have rows"),
            ({"pixel_attention_mask": shifted}, tango.UnsupportedModelError, "pixel_attention_mask hides some"),
        ):
            with tango.prune(model, "uniform", retention_ratio=0.5), pytest.raises(error, match=words):
                model.generate(**{**given, **change}, **GREEDY)

    @torch.no_grad()
    def test_of_several_questions_are_collated(self, model: Any) -> None:
        rows = [tango.prepare(processor(), video(Video(n, n)), "What?") for n in (6, 4)]
        batch = collate(rows, tokenizer().pad_token_id)
        with tango.prune(model, "tango", retention_ratio=0.25):
            together = tiny.new_tokens(model, batch, model.generate(**batch, **GREEDY))
            alone = [tiny.new_tokens(model, row, model.generate(**row, **GREEDY))[0] for row in rows]
        assert together == alone


def test_the_question_has_no_marks_of_frames(adapter: Any) -> None:
    given = smolvlm.inputs(("", Video(2, 1), "What is it?"))
    [embeds] = adapter.texts(given, Signal.TEXT, [2 * N])
    question = tokenizer()("\n\nWhat is it?", return_tensors="pt")["input_ids"][0]
    assert torch.equal(embeds, adapter.model.get_input_embeddings()(question))


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as the published checkpoints have them; beside them the SigLIP."""
    folder = tmp_path_factory.mktemp("smolvlm")
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    smolvlm.siglip().save_pretrained(folder / "siglip")
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": SIDE}}
    settings = {**smolvlm.SETTINGS, "video_sampling": sampling, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_image_splitting": True}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PUBLISHED_TEMPLATE}))
    return folder


class TestCheckpoint:
    def test_answers_and_has_the_prompt_of_training(self, checkpoint: Path) -> None:
        model, own = load(checkpoint)
        inputs = tango.prepare(own, video(Video(6, 1)), "What?")
        expected = smolvlm.inputs(("<|im_start|>User: ", Video(6, 1), "What?<end_of_utterance>\nAssistant:"))
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
        assert own.default_num_frames == 64
        stock = tango.answer(model, own, video(Video(6, 1)), "What?", max_new_tokens=4)
        with tango.prune(model, KeepAllPruner()):
            assert tango.answer(model, own, video(Video(6, 1)), "What?", max_new_tokens=4) == stock
        with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
            answer = tango.answer(model, own, video(Video(6, 1)), "What?", max_new_tokens=4)
            encoded = tango.encode(model, own, video(Video(6, 1)))
            assert tango.answer(model, own, encoded, "What?", max_new_tokens=4) == answer
        assert pruning.stats is not None
        assert pruning.stats.tokens_before == 96

    def test_without_its_siglip_says_which_one(self, checkpoint: Path) -> None:
        (checkpoint / "siglip").rename(checkpoint / "elsewhere")
        try:
            model, _ = load(checkpoint)
            with pytest.raises(tango.MissingSignalError, match="SmolVLM2 checkpoints lack: load it with"):
                tango.prune(model, "tango", retention_ratio=0.25)
            tango.prune(model, "tango", retention_ratio=0.25, saliency="attn").remove()
            model, _ = load(checkpoint, siglip=checkpoint / "elsewhere")
            tango.prune(model, "fastvid", retention_ratio=0.25).remove()
        finally:
            (checkpoint / "elsewhere").rename(checkpoint / "siglip")

    def test_another_tokenizer_is_refused(self, checkpoint: Path, tmp_path: Path) -> None:
        model, own = load(checkpoint)
        model.config.image_token_id = 3
        model.save_pretrained(tmp_path)
        own.tokenizer.save_pretrained(tmp_path)
        with pytest.raises(tango.CheckpointError, match=r"<image> is .* where config\.json says 3"):
            load(tmp_path)
        model.config.image_token_id = tokenizer().convert_tokens_to_ids(IMAGE)
