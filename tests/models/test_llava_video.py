"""LLaVA-Video: its pooling, its newlines, and that all of `tango.prune`'s promises hold with them."""

from __future__ import annotations

import pytest
import torch

import tango
from tango.containers import PrunedTokens, Signal, Video, VisualTokens, keep_all
from tango.models.base import adapter_class, family, stock_is_right
from tango.models.llava_video import LlavaVideoAdapter
from tango.models.processors.llava import CHATML, Processor
from tango.models.processors.messages import describe_time
from tango.profiling import StageTimer
from tango.runtime.answering import generate_text
from tests import tiny
from tests.models.test_loading import video
from tests.runtime.test_pruning import state_of
from tests.tiny import new_tokens

GREEDY = {"do_sample": False, "max_new_tokens": 6}
ODD = 14 * 7 + 5  # 7 x 7 patches and a rest of five pixels: 3 x 3 tokens a frame
T = 6
TIMES = [[0.0, 1.5, 3.0, 4.5, 6.0, 7.5]]


@pytest.fixture(scope="module", params=[tiny.IMAGE_SIZE, ODD], ids=["even", "odd"])
def model(request):
    return tiny.llava_video(image_size=request.param)


@pytest.fixture(scope="module")
def even():
    return tiny.llava_video()


def side(model) -> int:
    return model.config.vision_config.image_size // 14 // 2


def clip(model, seed: int, num_frames: int = T) -> torch.Tensor:
    size = model.config.vision_config.image_size
    return tiny.clip(seed, num_frames)[..., :size, :size].contiguous()


def ids_of(model, *parts: str | int) -> list[int]:
    """Ids of a prompt; an int stands for a video of that many frames."""
    token, S = model.config.video_token_id, side(model)
    encode = tiny.tokenizer()
    return [i for p in parts for i in ([token] * (p * S * (S + 1)) if isinstance(p, int) else encode(p)["input_ids"])]


def one_video(model) -> dict:
    rows = tiny.batch(ids_of(model, "Look: ", T, " What?"))
    return {**rows, "pixel_values_videos": clip(model, 1)[None], "video_timestamps_s": TIMES}


def three_videos(model) -> dict:
    rows = tiny.batch(ids_of(model, "A ", T, " B ", T, " why?"), ids_of(model, "In this one? ", T, " Tell me."))
    calm = clip(model, 3)
    calm[:] = calm[:1]
    pixels = torch.stack([clip(model, 2), calm, clip(model, 4)])
    return {**rows, "pixel_values_videos": pixels, "video_timestamps_s": TIMES * 3}


def plain_embeddings(model, row: torch.Tensor, clips: list[torch.Tensor]) -> torch.Tensor:
    """The whole prompt, straightforwardly: mean of 2 x 2 projected patches, a newline after each row of tokens."""
    base, S = model.model, side(model)
    patches = model.config.vision_config.image_size // 14
    tokens = []
    for frames in clips:
        hidden = base.vision_tower(frames, output_hidden_states=True).hidden_states[-1]
        projected = base.multi_modal_projector(hidden).view(len(frames), patches, patches, -1)
        for frame in projected:
            for y in range(S):
                for x in range(S):
                    tokens.append(frame[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1)))
                tokens.append(base.image_newline)
    embeds = model.get_input_embeddings()(row).clone()
    embeds[row == model.config.video_token_id] = torch.stack(tokens)
    return embeds[None]


def greedy(model, embeds: torch.Tensor, steps: int = 6) -> list[int]:
    new: list[int] = []
    for _ in range(steps):
        token = model(inputs_embeds=embeds).logits[0, -1].argmax()
        new.append(int(token))
        if new[-1] == model.generation_config.eos_token_id:
            break
        embeds = torch.cat([embeds, model.get_input_embeddings()(token[None, None])], dim=1)
    return new


def alone(inputs: dict, row: int, videos: slice) -> dict:
    attended = inputs["attention_mask"][row].bool()
    return {
        "input_ids": inputs["input_ids"][row : row + 1, attended],
        "attention_mask": inputs["attention_mask"][row : row + 1, attended],
        "pixel_values_videos": inputs["pixel_values_videos"][videos],
        "video_timestamps_s": inputs["video_timestamps_s"][videos],
    }


def test_the_marker_decides_the_family(even, tmp_path):
    even.save_pretrained(tmp_path)
    config = type(even.config).from_pretrained(tmp_path)
    assert (config.mm_newline_position, config.mm_spatial_pool_mode) == ("grid", "average")
    assert family(config) == "llava_video"
    assert adapter_class(config) is LlavaVideoAdapter
    assert not stock_is_right(even)
    plain = tiny.llava_onevision()
    assert family(plain.config) == "llava_onevision"
    assert stock_is_right(plain)
    odd = tiny.llava_video()
    odd.config.mm_spatial_pool_mode = "max"
    with pytest.raises(tango.UnsupportedModelError, match="'average'"):
        tango.prune(odd, "uniform")


def test_pooling_takes_means_and_discards_the_last_row_of_an_odd_grid(even):
    adapter = LlavaVideoAdapter(even)
    adapter.patches, adapter.grid = 5, (2, 2)
    grid = torch.arange(25.0).view(1, 5, 5)  # the last row and column are never in a mean
    expected = [[(0 + 1 + 5 + 6) / 4, (2 + 3 + 7 + 8) / 4, (10 + 11 + 15 + 16) / 4, (12 + 13 + 17 + 18) / 4]]
    assert adapter.pool(grid.view(1, 25, 1))[..., 0].tolist() == expected


def laid_out(model, indices: list[int], H: int, W: int, frames: int) -> tuple[list, list]:
    """What stands where, in words: "t0y1x2" for tokens, "newline", in a (frames, H, W) grid."""
    adapter = LlavaVideoAdapter(model)
    names = [f"t{t}y{y}x{x}" for t in range(frames) for y in range(H) for x in range(W)]
    D = model.config.text_config.hidden_size
    features = torch.arange(len(names), dtype=torch.float32)[:, None].expand(-1, D) + 1000
    tokens = VisualTokens(features=features.view(frames, H * W, D), grid=(H, W), timestamps_s=torch.arange(frames))
    kept = torch.tensor(indices)
    embeds, keep_mask = adapter.lay_out(tokens, PrunedTokens(features=features[kept], indices=kept))
    newline = model.model.image_newline
    return ["newline" if torch.equal(e, newline) else names[int(e[0]) - 1000] for e in embeds], keep_mask.int().tolist()


def test_a_row_keeps_its_newline_while_any_of_its_tokens_is_kept(even):
    words, keep_mask = laid_out(even, [0, 2, 4, 9], H=2, W=3, frames=2)
    assert words == ["t0y0x0", "t0y0x2", "newline", "t0y1x1", "newline", "t1y1x0", "newline"]
    assert keep_mask == [1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1]


def test_all_tokens_have_all_newlines(even):
    words, keep_mask = laid_out(even, list(range(12)), H=2, W=3, frames=2)
    assert [i for i, word in enumerate(words) if word == "newline"] == [3, 7, 11, 15]
    assert keep_mask == [1] * 16


def test_the_real_grid_has_182_placeholders_a_frame_and_its_sinks():
    full = tiny.tiny_model(tiny.tokenizer(), image_size=384, width=32, layers=1)
    full.config.mm_newline_position, full.config.mm_spatial_pool_mode = "grid", "average"
    adapter = adapter_class(full.config)(full, saliency="attn")
    with torch.no_grad():
        (tokens,) = adapter.encode_videos(
            {"pixel_values_videos": torch.zeros(1, 1, 3, 384, 384)}, Signal.SALIENCY, StageTimer()
        ).videos
    assert tokens.grid == (13, 13)
    assert tokens.sink_positions == (26, 157, 11)
    assert tokens.saliency.shape == (1, 169)
    assert adapter.num_video_tokens(full.config, 64) == 64 * 182
    embeds, keep_mask = adapter.lay_out(tokens, keep_all(tokens))
    assert len(embeds) == len(keep_mask) == 182
    assert adapter.default_num_frames == 64


def test_sinks_belong_to_the_full_grid_only(model):
    adapter = LlavaVideoAdapter(model)
    with torch.no_grad():
        (tokens,) = adapter.encode_videos(one_video(model), Signal.SALIENCY, StageTimer()).videos
    assert tokens.sink_positions == ()
    assert tokens.grid == (side(model), side(model))


@pytest.mark.parametrize("method", ["tango", "uniform"])
def test_all_tokens_equal_the_plain_embedding_of_the_whole_prompt(model, method):
    inputs = three_videos(model)
    clips = list(inputs["pixel_values_videos"])
    expected = []
    with torch.no_grad():
        for row, videos in ((0, clips[:2]), (1, clips[2:])):
            ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
            embeds = plain_embeddings(model, ids, videos)
            expected.append(greedy(model, embeds))
            with tango.prune(model, method, retention_ratio=1.0) as pruning:
                short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
            ours = short.inputs_embeds[row][short.attention_mask[row].bool()]
            torch.testing.assert_close(ours, embeds[0], rtol=1e-5, atol=1e-5)
    with tango.prune(model, method, retention_ratio=1.0) as pruning:
        output = model.generate(**inputs, **GREEDY)
    assert new_tokens(model, inputs, output) == expected
    assert pruning.stats.prompt_after == pruning.stats.prompt_before


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_pruned_rows_of_a_batch_equal_rows_alone(model, options):
    inputs = three_videos(model)
    rows = []
    for row, videos in ((0, slice(0, 2)), (1, slice(2, 3))):
        single = alone(inputs, row, videos)
        with tango.prune(model, "tango", retention_ratio=0.4):
            rows += new_tokens(model, single, model.generate(**single, **GREEDY, **options))
    with tango.prune(model, "tango", retention_ratio=0.4):
        output = model.generate(**inputs, **GREEDY, **options)
    assert new_tokens(model, inputs, output) == rows
    assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


def test_greedy_decoding_equals_a_reference_without_cache(model):
    inputs = three_videos(model)
    with tango.prune(model, "tango", retention_ratio=0.4) as pruning, torch.no_grad():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        output = model.generate(**inputs, **GREEDY)
    assert new_tokens(model, inputs, output) == [tiny.greedy_reference(model, short, row, 6) for row in (0, 1)]


def test_newlines_keep_their_positions_too(even):
    """`short.position_ids` say where the unpruned prompt has each token; without padding that is its column."""
    inputs = one_video(even)
    with tango.prune(even, "tango", retention_ratio=0.3, positions="kept") as pruning, torch.no_grad():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
    assert torch.equal(short.position_ids, short.kept)
    assert len(short.kept[0]) < len(inputs["input_ids"][0]) == short.position_ids[0, -1] + 1


def test_counts_of_tokens_leave_newlines_out_and_counts_of_prompts_do_not(model):
    S, inputs = side(model), one_video(model)
    with tango.prune(model, "random", retention_ratio=0.25) as pruning, torch.no_grad():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        (tokens,) = pruning.adapter.encode_videos(inputs, Signal.NONE, StageTimer()).videos
        kept = pruning.pruner(tokens).indices
        model.generate(**inputs, **GREEDY)
    text = len(ids_of(model, "Look: ", " What?"))
    stats, (counts,) = pruning.stats, pruning.stats.videos
    rows = len({int(index) // S for index in kept})
    assert 0 < rows < T * S
    assert (counts.frames, counts.grid, counts.tokens_before) == (T, (S, S), T * S * S)
    assert stats.tokens_after == counts.tokens_after == len(kept)
    assert stats.prompt_before == (text + T * S * (S + 1),)
    assert stats.prompt_after == (text + len(kept) + rows,) == (short.inputs_embeds.shape[1],)
    assert (stats.entering_before, stats.entering_after) == (T * S * (S + 1), len(kept) + rows)
    newlines = (short.inputs_embeds[0] == model.model.image_newline).all(-1).sum()
    assert newlines == rows


def test_videos_of_unequal_length(model):
    inputs = tiny.batch(ids_of(model, "A ", T, " B ", 3, " why?"))
    inputs["pixel_values_videos"] = [clip(model, 1), clip(model, 2, 3)]
    inputs["video_timestamps_s"] = [TIMES[0], [0.0, 1.0, 2.0]]
    with tango.prune(model, "tango", retention_ratio=0.3) as pruning:
        model.generate(**inputs, **GREEDY)
    assert [counts.frames for counts in pruning.stats.videos] == [T, 3]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_loss_of_a_padded_batch_is_that_of_its_rows(even, padding):
    rows = ids_of(even, "A ", T, " cat sat."), ids_of(even, "Now see this one: ", T, " dog.")
    pixels = torch.stack([clip(even, 2), clip(even, 4)])
    total, count = 0.0, 0
    with tango.prune(even, "tango", retention_ratio=0.3), torch.no_grad():
        for ids, frames in zip(rows, pixels, strict=True):
            single = tiny.batch(ids)
            labels = single["input_ids"].masked_fill(single["input_ids"] == even.config.video_token_id, -100)
            loss = even(**single, pixel_values_videos=frames[None], video_timestamps_s=TIMES, labels=labels).loss
            terms = int((labels[:, 1:] != -100).sum())
            total, count = total + float(loss) * terms, count + terms
        both = tiny.batch(*rows, side=padding)
        labels = both["input_ids"].masked_fill(both["attention_mask"] == 0, -100)
        labels[labels == even.config.video_token_id] = -100
        loss = even(**both, pixel_values_videos=pixels, video_timestamps_s=TIMES * 2, labels=labels).loss
    torch.testing.assert_close(float(loss), total / count, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_frame_without_kept_tokens_has_no_newline(model):
    """EVS at the ratio of one frame keeps the whole first frame, with its newlines, and no other placeholder."""
    inputs, S = one_video(model), side(model)
    with tango.prune(model, "evs", retention_ratio=1 / T) as pruning:
        prepared = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs)
    (mask,) = prepared.videos.keep_masks
    assert mask.tolist() == [True] * (S * (S + 1)) + [False] * ((T - 1) * S * (S + 1))
    newlines = (prepared.short.inputs_embeds[0] == model.model.image_newline).all(-1).sum()
    assert newlines == S


def test_gradients_reach_the_newline_and_the_tower():
    model = tiny.llava_video()
    inputs = one_video(model)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.video_token_id, -100)
    with tango.prune(model, "tango", retention_ratio=0.3):
        model(**inputs, labels=labels).loss.backward()
    assert model.model.image_newline.grad.abs().sum() > 0
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


def test_removal_restores_the_model(even):
    before = state_of(even)
    with tango.prune(even, "tango"):
        even.generate(**one_video(even), **GREEDY)
        assert state_of(even) != before
    assert state_of(even) == before

    def fail(*_args):
        raise RuntimeError("on purpose")

    hook = even.model.language_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"), tango.prune(even, "tango"):
        even.generate(**one_video(even), **GREEDY)
    hook.remove()
    assert state_of(even) == before


def test_other_videos_do_not_leak_into_each_other(even):
    inputs = three_videos(even)
    first, second = ({**one_video(even), "pixel_values_videos": inputs["pixel_values_videos"][i]} for i in ([0], [2]))
    with tango.prune(even, "tango", retention_ratio=0.3):
        a, _b, again = (even.generate(**i, **GREEDY) for i in (first, second, first))
    assert torch.equal(a, again)


@pytest.fixture(scope="module")
def loaded(even, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava-video")
    even.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return tango.load(folder, siglip=None)


def test_without_pruning_the_model_answers_through_tangos_own_path(loaded):
    model, processor = loaded
    inputs = tango.prepare(processor, video(), "What?")
    with torch.no_grad():
        embeds = plain_embeddings(model, inputs["input_ids"][0], list(inputs["pixel_values_videos"]))
        expected = processor.decode(greedy(model, embeds, 8), skip_special_tokens=True).strip()
    before = state_of(model)
    assert generate_text(model, processor, inputs, max_new_tokens=8) == expected
    assert tango.answer(model, processor, video(), "What?", max_new_tokens=8) == expected
    assert state_of(model) == before
    known = {k: v for k, v in inputs.items() if k not in ("video_timestamps_s", "video_first_equal")}
    with pytest.raises(ValueError, match="match"):  # stock code refuses the number of placeholders
        model.generate(**known, **GREEDY)


def known_video() -> Video:
    return Video(
        frames=torch.zeros(3, 40, 60, 3, dtype=torch.uint8),
        timestamps_s=torch.tensor([0.0, 1.234, 10.0], dtype=torch.float64),
        frame_indices=(0, 30, 250),
        num_source_frames=251,
        duration_s=10.046,
        fps=25.0,
        path="clip.mp4",
        backend="pyav",
    )


LOCATED = "These frames are located at 0.00s,1.23s,10.00s."
PLEASE = "Please answer the following questions related to this video.\n"
LASTS = "The video lasts for 10.05 seconds,and {} frames are uniformly sampled from it."
INSTRUCTIONS = {
    None: LASTS.format(3) + LOCATED + PLEASE,
    "frames": LASTS.format(3) + LOCATED + PLEASE,
    "release": LASTS.format(40) + LOCATED + PLEASE,
    "none": "",
}


def prompt_of(processor: Processor, inputs) -> str:
    """The prompt as text, with one <video> for all its placeholders."""
    text = processor.decode(inputs["input_ids"][0])
    head, *_, tail = text.split("<video>")
    return f"{head}<video>{tail}"


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_the_prompt_says_when_the_frames_are_shown(loaded, kind):
    _, processor = loaded
    options = {} if kind is None else {"time_instruction": kind}
    inputs = tango.prepare(processor, known_video(), "Who is it?", **options)
    assert prompt_of(processor, inputs) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<video>\n"
        f"{INSTRUCTIONS[kind]}Who is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert int((inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<video>")).sum()) == 3 * 4 * 5
    assert describe_time(known_video(), kind or "frames") == INSTRUCTIONS[kind]


def test_other_families_are_told_nothing_unless_asked():
    processor = Processor(tiny.tokenizer(), image_size=112, num_video_tokens=lambda T: T, default_num_frames=32)
    assert processor.chat_template == CHATML
    plain = prompt_of(processor, tango.prepare(processor, known_video(), "Who?"))
    assert "<video>\nWho?" in plain
    asked = tango.prepare(processor, known_video(), "Who?", time_instruction="frames")
    assert f"<video>\n{INSTRUCTIONS['frames']}Who?" in prompt_of(processor, asked)


def test_frames_without_timestamps_and_wrong_kinds(loaded):
    _, processor = loaded
    frames = known_video().frames
    assert "<video>\nWho?" in prompt_of(processor, tango.prepare(processor, frames, "Who?"))
    with pytest.raises(ValueError, match="needs a file or a Video"):
        tango.prepare(processor, frames, "Who?", time_instruction="frames")
    with pytest.raises(tango.UnknownNameError, match="unknown time instruction 'seconds'"):
        tango.prepare(processor, known_video(), "Who?", time_instruction="seconds")
