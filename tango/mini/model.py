"""The architecture of `tango-mini` and its tokenizer: a small LLaVA-OneVision.

It has a SigLIP tower with its attention-pooling head, a two-layer projector, bilinear pooling to half the grid, one
newline per video, and a Qwen2 language model, all in transformers' own classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tango.mini.questions import COLOR_NAMES, COUNTS
from tango.mini.scenes import DIRECTIONS, QUADRANTS, SIZE
from tango.mini.shapes import LETTERS, PATTERNS

if TYPE_CHECKING:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

NUM_FRAMES = 16
PATCH = 8
SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
_QUESTION_WORDS = "what which where how many way is the color pattern letter moves starts ends first last objects"
WORDS = (*SPECIAL, *_QUESTION_WORDS.split(), *COLOR_NAMES, *PATTERNS, *LETTERS, *QUADRANTS, *DIRECTIONS, *COUNTS)
IDS = {word: i for i, word in enumerate(WORDS)}
# The question ends the prompt and the answer follows at once; there is no system prompt and no role.
CHAT_TEMPLATE = (
    "{{ '<|im_start|>' }}{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>' }}"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
assert len(WORDS) == len(IDS)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token per word of `WORDS`; it ignores case and punctuation."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex("[?.!,:;]"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_config(
    *, vision_width: int = 96, vision_layers: int = 3, width: int = 128, layers: int = 4
) -> LlavaOnevisionConfig:
    """Make the model's configuration; the defaults are those of the trained weights."""
    from transformers import LlavaOnevisionConfig

    vision = {
        "model_type": "siglip_vision_model", "image_size": SIZE, "patch_size": PATCH, "hidden_size": vision_width,
        "intermediate_size": 3 * vision_width, "num_hidden_layers": vision_layers, "num_attention_heads": 2,
        "vision_use_head": True,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "vocab_size": len(WORDS), "hidden_size": width, "intermediate_size": 5 * width // 2,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "bos_token_id": IDS["<|im_start|>"],
        "eos_token_id": IDS["<|im_end|>"], "pad_token_id": IDS["<pad>"],
    }  # fmt: skip
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=IDS["<image>"], video_token_index=IDS["<video>"],
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_grid_pinpoints=[[SIZE, SIZE]],
        tie_word_embeddings=False, default_num_frames=NUM_FRAMES,
    )  # fmt: skip


def make_model(seed: int, **sizes: int) -> LlavaOnevisionForConditionalGeneration:
    """Make the untrained model. The tower's position embeddings start as sines and cosines."""
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(make_config(**sizes))
        model.model.image_newline.data.normal_(0, 0.27)
    table = model.model.vision_tower.embeddings.position_embedding.weight
    table.data.copy_(_position_table(SIZE // PATCH, table.shape[1]))
    model.generation_config.eos_token_id = IDS["<|im_end|>"]
    model.generation_config.pad_token_id = IDS["<pad>"]
    return model.eval()


def _position_table(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, (side * side, width)."""
    rates = 20.0 ** -torch.arange(0, 1, 4 / width)
    phase = torch.arange(side)[:, None] * rates
    one = 0.5 * torch.cat([phase.sin(), phase.cos()], dim=1)
    return torch.cat([one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)], dim=2).flatten(0, 1)
