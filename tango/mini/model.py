"""The architecture of `tango-mini` and its tokenizer: LLaVA-OneVision in every part, only small.

A SigLIP tower with its attention-pooling head, a two-layer projector, bilinear pooling to half the grid and one newline
per video, and a Qwen2 language model, all in transformers' own classes.
"""

from __future__ import annotations

from typing import Any

import torch

from tango.mini.questions import COLOR_NAMES, COUNTS
from tango.mini.scenes import DIRECTIONS, QUADRANTS, SIZE
from tango.mini.shapes import LETTERS, SHAPES

NUM_FRAMES = 16
PATCH = 8
SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
_QUESTION_WORDS = "what which where how many way is the color shape letter moves starts ends first last objects"
WORDS = (*SPECIAL, *_QUESTION_WORDS.split(), *COLOR_NAMES, *SHAPES, *LETTERS, *QUADRANTS, *DIRECTIONS, *COUNTS)
# Distances (rows, columns) at which the four heads of each layer look before training.
_OFFSETS = (
    ((0, 1), (0, -1), (1, 0), (-1, 0)),
    ((1, 1), (1, -1), (-1, 1), (-1, -1)),
    ((0, 2), (0, -2), (2, 0), (-2, 0)),
)
IDS = {word: i for i, word in enumerate(WORDS)}
# The question is the prompt's last word and the answer follows at once; there is no system text and no role.
CHAT_TEMPLATE = (
    "{{ '<|im_start|>' }}{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>' }}"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
assert len(WORDS) == len(IDS)


def make_tokenizer() -> Any:
    """One token per word of `WORDS`, case and punctuation ignored."""
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


def make_config(*, vision_width: int = 96, vision_layers: int = 3, width: int = 128, layers: int = 5) -> Any:
    """The model's transformers config; the defaults are those of the trained weights."""
    from transformers import LlavaOnevisionConfig

    vision = {
        "model_type": "siglip_vision_model", "image_size": SIZE, "patch_size": PATCH, "hidden_size": vision_width,
        "intermediate_size": 3 * vision_width, "num_hidden_layers": vision_layers, "num_attention_heads": 4,
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


def make_model(seed: int, **sizes: int) -> Any:
    """The model before training."""
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(make_config(**sizes))
        model.model.image_newline.data.normal_(0, 0.27)
        _start_tower(model.model.vision_tower)
    model.generation_config.eos_token_id = IDS["<|im_end|>"]
    model.generation_config.pad_token_id = IDS["<pad>"]
    return model.eval()


@torch.no_grad()
def _start_tower(tower: Any) -> None:
    """Let the tower start like a small convolution; everything is learned from there.

    Positions start as sines and cosines of row and column, and every attention head looks at the patch that lies at one
    fixed distance from its own. From random weights, shapes take several times as long to learn.
    """
    embeddings, side = tower.embeddings.position_embedding.weight, SIZE // PATCH
    width = embeddings.shape[1]
    rates = 2.5 * 0.04 ** torch.linspace(0, 1, width // 4)
    phase = torch.arange(side)[:, None] * rates
    along = torch.cat([phase.sin(), phase.cos()], dim=1)  # of one axis, (side, width / 2)
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    embeddings.copy_(torch.cat([rows, columns], dim=2).flatten(0, 1))
    for number, layer in enumerate(tower.encoder.layers):
        attention = layer.self_attn
        attention.out_proj.weight *= 0.5  # or later layers would see less of the positions
        layer.mlp.fc2.weight *= 0.5
        for head, offset in enumerate(_OFFSETS[number % len(_OFFSETS)]):
            each = attention.head_dim // 4  # frequencies per axis
            chosen = torch.linspace(0, width // 4 - 2, each).round().long() + head % 2
            for axis, distance in enumerate(offset):
                sines = axis * width // 2 + chosen
                cosines = sines + width // 4
                first = head * attention.head_dim + 2 * axis * each + torch.arange(each)
                second = first + each
                turn = rates[chosen] * distance
                for projection, angle in ((attention.k_proj, 0 * turn), (attention.q_proj, turn)):
                    weight = projection.weight
                    weight[torch.cat([first, second])] *= 0.1
                    weight[first, sines] += 1.6 * angle.cos()
                    weight[first, cosines] += 1.6 * angle.sin()
                    weight[second, cosines] += 1.6 * angle.cos()
                    weight[second, sines] -= 1.6 * angle.sin()
