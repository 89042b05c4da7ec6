"""SmolVLM2: frames of 64 x 64 pixels, 4 x 4 tokens each, after their time as text; from the processor itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tango.containers import Video as Frames
from tango.models.media import MEDIA
from tango.models.pooling_head import PoolingHead
from tango.models.processors.smolvlm import FAKE, IMAGE, WHOLE, SmolVlmProcessor
from tests.families import Family, Inputs, Picture, Row, Video, for_stock

SIDE, N = 64, 16
SETTINGS = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}  # as checkpoints say them
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": SIDE,
    "patch_size": 8, "initializer_range": 0.15,
}  # fmt: skip


@cache
def tokenizer() -> Any:
    """Bytes, and the special tokens of the published checkpoints: no <video> is among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tiles = [f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)]
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<end_of_utterance>", FAKE, IMAGE, WHOLE, *tiles])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end_of_utterance>", pad_token="<|im_end|>", padding_side="left"
    )


def config(*, layers: int = 4, scale_factor: int = 2, **tower: int) -> Any:
    from transformers import SmolVLMConfig

    ids = tokenizer().convert_tokens_to_ids
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer()), "initializer_range": 0.15,
        "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": ids("<end_of_utterance>"),
        "pad_token_id": ids("<|im_end|>"),
    }  # fmt: skip
    return SmolVLMConfig(
        vision_config={**TOWER, **tower}, text_config=text, image_token_id=ids(IMAGE), scale_factor=scale_factor
    )


def siglip(seed: int = 1, **sizes: int) -> Any:
    """A SigLIP with a pooling head, such as the tower started from."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SiglipVisionModel(SiglipVisionConfig(**{**TOWER, **sizes})).eval()


def model(seed: int = 0, **sizes: int) -> Any:
    """A SmolVLM2 with random weights and a pooling head beside it, as `tango.load` would return it."""
    from transformers import SmolVLMForConditionalGeneration

    made = config(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = SmolVLMForConditionalGeneration(made).eval()
    built.generation_config.eos_token_id = made.text_config.eos_token_id
    built.generation_config.pad_token_id = made.text_config.pad_token_id
    with torch.no_grad():
        built.lm_head.weight[made.image_token_id] = 0  # never said: uncached, stock code would take it for an image
    built.__dict__["pooling_head"] = PoolingHead.from_tensors(dict(siglip().state_dict()), num_heads=4, eps=1e-6)
    return built


def processor(**options: Any) -> SmolVlmProcessor:
    own = {"settings": SETTINGS, "image_settings": SETTINGS, **options}
    return SmolVlmProcessor(tokenizer(), image_size=SIDE, tokens_per_frame=N, **own)


def video(part: Video) -> Frames:
    """Frames whose left halves are equal, one and a half seconds apart."""
    rng = np.random.default_rng(part.seed)
    frames = rng.integers(0, 255, (1, 60, 80, 3), dtype=np.uint8).repeat(part.frames, 0)
    frames[:, :, 40:] = rng.integers(0, 255, (part.frames, 60, 40, 3), dtype=np.uint8)
    return frames_at(torch.from_numpy(frames), 1.5 * torch.arange(part.frames, dtype=torch.float64))


def frames_at(frames: Tensor, seconds: Tensor) -> Frames:
    return Frames(
        frames=frames, timestamps_s=seconds, frame_indices=tuple(range(len(frames))), num_source_frames=len(frames),
        duration_s=float(seconds[-1]) + 1.0, fps=1.0, path="", backend="",
    )  # fmt: skip


def picture(part: Picture) -> Image.Image:
    return Image.fromarray(np.random.default_rng(part.seed).integers(0, 255, (60, 80, 3), dtype=np.uint8))


def inputs(*rows: Row) -> Inputs:
    """A picture has 2 x 2 tiles and one that shows the whole."""
    texts = [
        "".join(p if isinstance(p, str) else "<video>" if isinstance(p, Video) else IMAGE for p in r) for r in rows
    ]
    videos = [video(part) for row in rows for part in row if isinstance(part, Video)]
    pictures = [[picture(part) for part in row if isinstance(part, Picture)] for row in rows]
    return dict(processor()(texts, videos or None, pictures if any(pictures) else None))


def stock(given: Inputs) -> Inputs:
    return {name: value for name, value in for_stock(given).items() if name != MEDIA}


FAMILY = Family(
    name="smolvlm", model=model, inputs=inputs, stock=stock, tokens_per_frame=N, processor=lambda _model: processor()
)
