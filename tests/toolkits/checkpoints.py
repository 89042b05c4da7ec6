"""Tiny checkpoints whose random weights answer multiple-choice questions (a letter, then the end), and short clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from tango.toy import tiny_siglip
from tests import lmms_checkpoint, tiny_qwen
from tests.clips import write_clip

CLIPS: dict[str, dict[str, Any]] = {
    "plain": {}, "short": {"num_frames": 9}, "wide": {"size": (192, 64)}, "slow": {"fps": 5, "gop": 5},
}  # fmt: skip


def answer_with_letters(model: Any, tokenizer: Any, seed: int = 0) -> None:
    """Make the model answer one letter, which depends on all that it sees, and then stop.

    One direction of the residual stream is set apart: only the letters' embeddings have it, no layer writes to it, and
    only the token that ends an answer is read off it. The letters' logits add up to zero, so before a letter one of
    them is above all other tokens' (zero).
    """
    generator = torch.Generator().manual_seed(seed)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    letters = tokenizer.convert_tokens_to_ids(list("ABCD"))
    apart = normalize(torch.randn(embeddings.shape[1], generator=generator), dim=0)

    def without(rows: torch.Tensor) -> torch.Tensor:
        return rows - (rows @ apart)[:, None] * apart

    with torch.no_grad():
        embeddings.copy_(without(embeddings))
        embeddings[letters] = 1e4 * apart
        head.zero_()
        rows = without(torch.randn(4, len(apart), generator=generator))
        head[letters] = rows - rows.mean(dim=0)
        head[tokenizer.eos_token_id] = 10 * apart
        model.model.language_model.norm.weight.fill_(1.0)
        for name, parameter in model.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")) and "visual" not in name and "vision" not in name:
                parameter.copy_(without(parameter.T).T)


def write_llava(folder: Path, *, video: bool = False) -> Path:
    """A LLaVA-OneVision or LLaVA-Video in lmms-lab's layout, with the SigLIP that has the pooling head beside it."""
    model = lmms_checkpoint.twin(video=video)
    answer_with_letters(model, lmms_checkpoint.tiny_tokenizer(), seed=3)  # a seed that gives various letters
    lmms_checkpoint.write(folder, model)
    tiny_siglip(model).save_pretrained(folder / "siglip")
    return folder


def write_qwen(folder: Path) -> Path:
    """A Qwen2.5-VL in transformers' layout."""
    model, tokenizer = tiny_qwen.model("qwen2_5_vl"), tiny_qwen.tokenizer()
    answer_with_letters(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_clips(folder: Path) -> Path:
    """Real videos, named as in `CLIPS`, and `broken.mp4`, which cannot be read."""
    for name, options in CLIPS.items():
        write_clip(folder / f"{name}.mp4", **options)
    (folder / "broken.mp4").write_bytes((folder / "plain.mp4").read_bytes()[:900])
    return folder
