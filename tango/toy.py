"""A tiny model and a small clip, made on the spot, to try and test Tango without any files.

The checkpoint has LLaVA-OneVision's real structure (27 x 27 patches, 14 x 14 tokens a frame) but random weights, so
its answers mean nothing; token counts and the ratios of stage times do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


def draw_frames(*, num_frames: int, size: int) -> Iterator[NDArray[np.uint8]]:
    """Draw frames (size, size, 3): a disc moves over a still background, and the scene changes twice."""
    row, column = np.mgrid[:size, :size] / size
    for t in range(num_frames):
        scene = 3 * t // num_frames
        background = np.stack([np.sin(9 * row * (scene + 1)), np.cos(7 * column + scene), row * column], axis=-1)
        centre = 0.2 + 0.6 * (t % max(1, num_frames // 3)) / max(1, num_frames // 3)
        disc = (row - 0.5) ** 2 + (column - centre) ** 2 < 0.01
        picture = 127 + 100 * background
        picture[disc] = np.roll([240, 40, 40], scene)
        yield picture.clip(0, 255).astype(np.uint8)


def write_clip(path: Path, *, num_frames: int = 96, size: int = 256, fps: int = 24) -> None:
    """Write `draw_frames` as a short mp4."""
    import av

    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for picture in draw_frames(num_frames=num_frames, size=size):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def tiny_tokenizer(special: Sequence[str] = _SPECIAL) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with special tokens, by default those of LLaVA-OneVision, made without any file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, *, image_size: int = 384, width: int = 64, layers: int = 2, seed: int = 0
) -> PreTrainedModel:
    """A LLaVA-OneVision with random weights. `width` is the tower's; the LLM is four times as wide."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    ids = tokenizer.convert_tokens_to_ids
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": 4, "image_size": image_size, "patch_size": 14,
        "vision_use_head": False,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "hidden_size": 4 * width, "intermediate_size": 8 * width, "num_attention_heads": 4,
        "num_hidden_layers": 2 * layers, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
        "initializer_range": 0.2, "max_position_embeddings": 32768, "tie_word_embeddings": False, "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=ids("<image>"), video_token_index=ids("<video>"),
        vision_feature_layer=-1, image_grid_pinpoints=[[image_size, image_size], [image_size, 2 * image_size]],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = ids("<|im_end|>")
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    return model


def tiny_siglip(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """A SigLIP tower of the same size that has an attention-pooling head, as LLaVA's towers once did."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(**{**model.config.vision_config.to_dict(), "vision_use_head": True})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SiglipVisionModel(config).eval()


def write_checkpoint(folder: Path, **options: int) -> None:
    """Write a tiny LLaVA-OneVision checkpoint, and beside it in `siglip/` the SigLIP with the pooling head."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny_siglip(model).save_pretrained(folder / "siglip")
