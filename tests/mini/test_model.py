"""The architecture and the tokenizer: transformers' own classes, and the ordinary path from file to answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tango
from tango.lab.training.language import _pack, prefix_of
from tango.lab.training.packed import packed_forward
from tango.lab.training.train import write_checkpoint
from tango.lab.training.vision import see, to_pixel_values
from tango.mini.benchmark import benchmark_clip, clip_file
from tango.mini.model import IDS, NUM_FRAMES, WORDS, make_model, make_tokenizer
from tango.models import default_num_frames
from tango.models.processors.llava import preprocess_frames

SIZES = {"vision_width": 32, "vision_layers": 2, "width": 32, "layers": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini") / "model"
    write_checkpoint(make_model(0, **SIZES), folder)
    return folder


def test_words_survive_the_tokenizer():
    tokenizer = make_tokenizer()
    for i in range(60):
        for question in benchmark_clip(i)[1]:
            ids = tokenizer(question.text, add_special_tokens=False).input_ids
            assert tokenizer.decode(ids) == question.text
            for option in question.options:
                (token,) = tokenizer(option, add_special_tokens=False).input_ids
                assert tokenizer.decode([token]) == option


def test_case_and_punctuation_do_not_matter():
    tokenizer = make_tokenizer()
    assert tokenizer("What color is the Circle?").input_ids == tokenizer("what color is the circle").input_ids
    assert tokenizer("giraffe").input_ids == [IDS["<unk>"]]


def test_the_prompt_is_video_then_question(checkpoint, tmp_path):
    _, processor = tango.load(checkpoint)
    inputs = tango.prepare(processor, clip_file(tmp_path, 0), "Where is red?")
    ids = inputs["input_ids"][0].tolist()
    words = [WORDS[i] for i in ids]
    assert words == ["<|im_start|>", *["<video>"] * (NUM_FRAMES * 49 + 1), "where", "is", "red"]


def test_the_checkpoint_says_how_many_frames_it_wants(checkpoint, tmp_path):
    model, processor = tango.load(checkpoint)
    assert processor.default_num_frames == default_num_frames(checkpoint) == NUM_FRAMES
    assert model.pooling_head.width == 32
    with tango.prune(model, "tango", retention_ratio=0.1) as pruning:
        text = tango.answer(model, processor, clip_file(tmp_path, 0), "where is red", max_new_tokens=2)
        assert pruning.stats.tokens_before == NUM_FRAMES * 49
    assert set(text.split()) <= set(WORDS)


def test_training_and_use_see_the_same_tokens(checkpoint):
    model, _ = tango.load(checkpoint)
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8))
    assert torch.allclose(to_pixel_values(frames), preprocess_frames(frames, 112), atol=1e-6)
    with torch.inference_mode():
        ours = see(model, frames)[0].flatten(0, 1)
        stock = model.model.get_video_features(to_pixel_values(frames)[None]).pooler_output[0]
    assert torch.allclose(ours, stock[: len(ours)], atol=1e-5)  # a newline may follow


def test_packed_questions_are_answered_as_if_alone(checkpoint):
    model, _ = tango.load(checkpoint)
    decoder, clips = model.model.language_model, [benchmark_clip(i)[1][:5] for i in range(2)]
    ids, ends = _pack(clips)
    tokens = torch.randn(2, 98, 32, generator=torch.Generator().manual_seed(0))
    prefix, positions = prefix_of(model, tokens, torch.ones(2))
    with torch.inference_mode():
        hidden = packed_forward(decoder, prefix, positions, decoder.embed_tokens(ids))
        for b, of_clip in enumerate(clips):
            for q in range(len(of_clip)):
                length = int(ends[b, q]) + 2
                alone = torch.cat([prefix[b], decoder.embed_tokens(ids[b, q, :length])])[None]
                expected = decoder(inputs_embeds=alone).last_hidden_state[0, -length:]
                assert torch.allclose(hidden[b, q, :length], expected, atol=1e-4)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    a = make_model(1, **SIZES).state_dict()
    before = torch.random.get_rng_state()
    b = make_model(1, **SIZES).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(a["lm_head.weight"], make_model(2, **SIZES).state_dict()["lm_head.weight"])
