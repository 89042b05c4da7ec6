"""The checkpoint that training starts from: two pretrained models in LLaVA-OneVision's class, and a new projector.

Frames are squares of `IMAGE_SIZE` pixels: 20 x 20 patches of DINOv2, pooled to 10 x 10 tokens.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from tango.errors import CheckpointError, MissingPartError
from tango.files import write_bytes, write_json
from tango.models.base import adapter_class
from tango.models.checkpoint import read_json, reading
from tango.models.loading import load
from tango.models.processors.llava import CHATML

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

IMAGE_SIZE, NUM_FRAMES = 280, 16
# SmolLM2's own template for text, with places for media.
TEMPLATE = CHATML.replace(
    "You are a helpful assistant.", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
)
_PROJECTOR = ("model.multi_modal_projector.", "model.image_newline")
_SETTINGS = "preprocessor_config.json"


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a language model and its tokenizer with transformers' own loader, as plain float32.

    Raises:
        MissingPartError: the package gguf, which transformers needs for it, is not installed.
        CheckpointError: it is no such file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        raise MissingPartError("reading GGUF needs the package gguf; pip install gguf, or run scripts/train_small.sh")
    with reading(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False, dtype=torch.float32
        )
    return model, tokenizer


def write_base(
    tower: Path,
    language: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    *,
    image_size: int = IMAGE_SIZE,
    num_frames: int = NUM_FRAMES,
    seed: int = 0,
) -> None:
    """Write both models with an untrained projector as one checkpoint; the folder appears when it is complete.

    Args:
        tower: a folder of transformers' `Dinov2Model`, with `preprocessor_config.json`.
        language: a Llama; `tokenizer` gets two tokens more, for videos and images.
        image_size: pixels per side of a frame, a multiple of two patches.
    Raises:
        CheckpointError: the tower is another model's, or frames of this size do not fit its patches.
    """
    from transformers import Dinov2Model, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    with reading(tower):
        eyes = Dinov2Model.from_pretrained(tower, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
    patch = eyes.config.patch_size
    if image_size % (2 * patch):
        raise CheckpointError(f"frames of {image_size} pixels are no whole number of {2 * patch}-pixel tokens")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<image>", "<video>"]}, replace_extra_special_tokens=False
    )
    tokenizer.chat_template, tokenizer.padding_side = TEMPLATE, "left"
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = "<|endoftext|>"
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = language.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        text.pop(name, None)
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = LlavaOnevisionConfig(
        vision_config={**eyes.config.to_dict(), "image_size": image_size},
        text_config={**text, "vocab_size": len(tokenizer), **{f"{name}_token_id": i for name, i in ids.items()}},
        image_token_index=image, video_token_index=video, vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_grid_pinpoints=[[image_size, image_size]],
        tie_word_embeddings=language.config.tie_word_embeddings, default_num_frames=num_frames,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config).eval()
    _fill(model, eyes, language)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids["eos"], ids["pad"]
    settings = {**read_json(tower / _SETTINGS), "size": {"height": image_size, "width": image_size}}
    with _appearing(output) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / _SETTINGS, settings)


@torch.no_grad()
def _fill(model: LlavaOnevisionForConditionalGeneration, eyes: Any, language: Any) -> None:
    """Copy the weights of both models. Position embeddings are resized to the new grid, as the tower itself does;
    tokens that are new get the mean of all embeddings, so that they are never the likeliest."""
    side, width = model.config.vision_config.image_size, eyes.config.hidden_size
    patches = (side // eyes.config.patch_size) ** 2
    weights = eyes.state_dict()
    positions = eyes.embeddings.interpolate_pos_encoding(torch.zeros(1, patches + 1, width), side, side)
    adapter_class(model.config).tower(model).load_state_dict({**weights, "embeddings.position_embeddings": positions})
    for name, owner in (("embed_tokens.weight", model.model.language_model), ("lm_head.weight", model)):
        rows = language.get_input_embeddings() if name.startswith("embed") else language.get_output_embeddings()
        target = owner.get_parameter(name)
        target[: len(rows.weight)] = rows.weight
        target[len(rows.weight) :] = rows.weight.mean(0)
    decoder = model.model.language_model
    decoder.load_state_dict({**language.model.state_dict(), "embed_tokens.weight": decoder.embed_tokens.weight})


def projector_of(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """What is trained: the projector and the embedding after a video, by name."""
    return {name: x for name, x in model.named_parameters() if name.startswith(_PROJECTOR)}


def write_projector(model: PreTrainedModel, file: Path) -> None:
    """Write what is trained, in float32."""
    weights = {name: x.detach().float().cpu().contiguous() for name, x in projector_of(model).items()}
    write_bytes(file, save(weights, metadata={"format": "pt"}))


def write_model(base: Path, projector: Path, output: Path, *, card: str = "") -> None:
    """Put a trained projector into the base and write the whole checkpoint; the folder appears when it is complete.

    Args:
        card: what `README.md` says in `projector/`, beside a copy of the projector; "": there is no such folder.
    Raises:
        CheckpointError: the projector belongs to another base.
    """
    model, processor = load(base, dtype="float32", device="cpu")
    with reading(projector):
        weights = load_file(projector)
    own = projector_of(model)
    if {name: x.shape for name, x in own.items()} != {name: x.shape for name, x in weights.items()}:
        raise CheckpointError(f"{projector} is not the projector of a model such as {base}")
    with torch.no_grad():
        for name, x in own.items():
            x.copy_(weights[name])
    with _appearing(output) as partial:
        model.save_pretrained(partial)
        processor.tokenizer.save_pretrained(partial)
        shutil.copyfile(base / _SETTINGS, partial / _SETTINGS)
        if card:
            write_bytes(partial / "projector" / "README.md", card.encode())
            shutil.copyfile(projector, partial / "projector" / projector.name)


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder to write to that becomes `output` at the end."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
