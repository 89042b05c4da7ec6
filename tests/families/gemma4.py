"""Gemma 4 with random weights: layers that slide, share keys and have embeddings of their own, as in E2B and E4B."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tango.models.processors.gemma4 import Frames, Gemma4Processor, patch_positions, videos_lie_flat
from tango.toy import tiny_tokenizer
from tests import tiny
from tests.families import Family, Row, Video

VIDEO, IMAGE, BOI, EOI = "<|video|>", "<|image|>", "<|image>", "<image|>"
TEMPLATE = (
    "<bos>{% for m in messages %}{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<|{{ p['type'] }}|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}model\n{% endif %}"
)
PATCH, KERNEL, WIDE, LONG = 4, 2, (4, 6), 32  # pixels, patches of a token, rows and columns of patches, patches padded


@cache
def tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    tokens = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, padding_side="left", bos_token="<bos>",
        eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE,
        extra_special_tokens={
            "image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI,
            "audio_token": "<audio>", "boa_token": "<boa>", "eoa_token": "<eoa>",
        },
    )  # fmt: skip
    tokens.add_tokens([VIDEO])  # as plain text
    return tokens


def config(**text: Any) -> Any:
    """`text` are fields of the text config; by default E2B's kind: own embeddings of layers, and shared keys."""
    from transformers import Gemma4Config

    ids, rows = tokenizer().convert_tokens_to_ids, len(tokenizer())
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "patch_size": PATCH, "pooling_kernel_size": KERNEL,
        "position_embedding_size": 64, "initializer_range": 0.2, "standardize": True,
    }  # fmt: skip
    own = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "vocab_size": rows,
        "vocab_size_per_layer_input": rows, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2, "sliding_window": 24,
        "initializer_range": 0.2, "max_position_embeddings": 4096, "bos_token_id": ids("<bos>"),
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    return Gemma4Config(
        vision_config=vision, text_config={**own, **text}, audio_config=None, boi_token_id=ids(BOI),
        eoi_token_id=ids(EOI), image_token_id=ids(IMAGE), video_token_id=ids(VIDEO), audio_token_id=ids("<audio>"),
    )  # fmt: skip


def model(seed: int = 0, **text: Any) -> Any:
    from transformers import Gemma4ForConditionalGeneration

    settings = config(**text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = Gemma4ForConditionalGeneration(settings).eval()
        tower = built.model.vision_tower
        torch.nn.init.normal_(tower.patch_embedder.position_embedding_table)  # stock begins with ones
        torch.nn.init.normal_(tower.std_bias)
        torch.nn.init.uniform_(tower.std_scale, 0.5, 1.5)
    built.generation_config.eos_token_id = settings.text_config.eos_token_id
    built.generation_config.pad_token_id = settings.text_config.eos_token_id  # as many users set it
    return built


def bidirectional(seed: int = 0) -> Any:
    """As the larger models: frames see each other in both directions, and no layer has embeddings of its own."""
    return model(seed, use_bidirectional_attention="vision", hidden_size_per_layer_input=0, num_kv_shared_layers=0)


def patches(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Padded patches of so many frames, and their positions; the left half of the frames stands still."""
    rows, columns = WIDE
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, rows, columns, 3 * PATCH**2, generator=generator)
    pixels[:, :, : columns // 2] = pixels[:1, :, : columns // 2]
    padding = (0, 0, 0, LONG - rows * columns)
    positions = torch.nn.functional.pad(patch_positions(rows, columns), padding, value=-1)
    return torch.nn.functional.pad(pixels.flatten(1, 2), padding), positions.expand(count, -1, -1)


def inputs(*rows: Row, flat: bool | None = None) -> dict[str, Any]:
    """`flat`: the form of the videos; None: the installed stock model's, and flat where stock takes no such videos."""
    tokens = (WIDE[0] // KERNEL) * (WIDE[1] // KERNEL)
    texts, videos, pictures = [], [], []
    for row in rows:
        text = "<bos>"
        for part in row:
            if isinstance(part, str):
                text += part
            elif isinstance(part, Video):
                frame = BOI + VIDEO * tokens + EOI
                text += " ".join(f"00:{2 * i:02d} {frame}" for i in range(part.frames))
                videos.append(part)
            else:
                text += BOI + IMAGE * tokens + EOI
                pictures.append(part)
        texts.append(tokenizer()(text, add_special_tokens=False)["input_ids"])
    given: dict[str, Any] = dict(tiny.batch(*texts))
    ids, own = given["input_ids"], config()
    given["mm_token_type_ids"] = (ids == own.image_token_id).int() + 2 * (ids == own.video_token_id).int()
    if videos:
        cut = [patches(video.frames, video.seed) for video in videos]
        counts = [video.frames for video in videos]
        flat = (videos_lie_flat() or len(set(counts)) > 1) if flat is None else flat
        for name, parts in zip(("pixel_values_videos", "video_position_ids"), zip(*cut, strict=True), strict=True):
            given[name] = torch.cat(parts) if flat else torch.stack(parts)
        if flat:
            given["num_frames_per_video"] = torch.tensor(counts)
        given["video_timestamps_s"] = [[2.0 * i for i in range(count)] for count in counts]
    if pictures:
        cut = [patches(1, 100 + picture.seed) for picture in pictures]
        given["pixel_values"], given["image_position_ids"] = (torch.cat(x) for x in zip(*cut, strict=True))
    return given


def direct_calls_take_videos() -> bool:
    """Not in transformers 5.20, whose `forward` does not hand `num_frames_per_video` on; `generate` does."""
    from transformers import Gemma4Model

    handed_on = "num_frames_per_video=num_frames_per_video" in inspect.getsource(Gemma4Model.forward)
    return handed_on or not videos_lie_flat()


def processor(_model: Any) -> Gemma4Processor:
    return Gemma4Processor(tokenizer(), frames=Frames(size=PATCH, kernel=KERNEL, max_tokens=8), chat_template=TEMPLATE)


FAMILY = Family(
    name="gemma4",
    model=model,
    inputs=inputs,
    tokens_per_frame=6,
    stock_is_right=direct_calls_take_videos(),
    layer_pruners=False,
    processor=processor,
    keeps_prefix=False,  # sliding windows
    unequal=videos_lie_flat(),  # transformers 5.17 stacks videos
    stock_wrong={"several beams": "<5.20"},  # it repeats videos, not prompts, so beams of several videos see others
)
