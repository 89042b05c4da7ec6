"""`load`: from a checkpoint to a model and a processor that can be pruned and asked."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tango.errors import CheckpointError, TangoError, UnknownNameError
from tango.models import lmms_lab
from tango.models.base import Adapter, adapter_class, find_adapter
from tango.models.checkpoint import check_config, check_config_file, reading
from tango.models.hub import CONFIG_FILES, resolve_folder
from tango.models.placement import device_of, weight_of
from tango.models.pooling_head import PoolingHead, siglip_of
from tango.models.processors.protocol import ChatProtocol
from tango.models.weights import check_finite

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    path_or_id: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    siglip: str | Path | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, ChatProtocol]:
    """Load a model and its processor.

    Args:
        path_or_id: hub id or local folder of a checkpoint (safetensors), in transformers' layout or lmms-lab's own.
        dtype: "auto" (the checkpoint's; float32 in place of float16 on a CPU), "float32", "float16" or "bfloat16".
        device: None: CUDA if there is one, else the CPU.
        attn_implementation: as in transformers; None: its default, sdpa. "flash_attention_2" falls back to sdpa, with
            a warning, on a CPU or without the package flash-attn.
        siglip: hub id or local folder of the SigLIP that the tower started from, the source of the attention-pooling
            head for "p-attn" saliency; methods that need it are refused without. None: the folder `siglip/` of the
            checkpoint, else the tower itself if it kept its head, else google's SigLIP of its sizes, if known.
        revision: branch, tag or commit of the checkpoint on the hub.
        local_files_only: never ask the hub.
        **options: passed on to `from_pretrained`, such as `device_map`, `quantization_config` or `distributed_config`.
    Returns:
        The model in evaluation mode, with the head as its plain attribute `pooling_head`, and its processor.
    Raises:
        TangoError: there is no such checkpoint.
        UnsupportedModelError: no adapter handles this type of model.
        CheckpointError: files are damaged, incomplete or another model's; the message names them. Missing weights are
            never filled with random numbers, and neither code nor pickled weights of a checkpoint are run.

    Example:
        >>> model, processor = tango.load("tango-mini", dtype="float32", device="cpu")
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise UnknownNameError("dtype", name, _DTYPES)
    folder = resolve_folder(path_or_id, local_files_only=local_files_only, revision=revision)
    config, adapter = read_config(folder)
    device = choose_device(device)
    chosen = _DTYPES[name] or config.dtype or config.get_text_config().dtype or torch.float32
    if name == "auto" and device.type == "cpu" and chosen == torch.float16:
        chosen = torch.float32
    if (attention := available_attention(attn_implementation, device)) is not None:
        options["attn_implementation"] = attention
    if lmms_lab.is_lmms_lab(folder):
        tokenizer = lmms_lab.load_tokenizer(folder, config)  # first, because it sets the ids of the placeholders
        processor = _make_processor(adapter, folder, config, tokenizer)
        model = lmms_lab.load_model(folder, config, dtype=chosen, **options)
    else:
        processor = _make_processor(adapter, folder, config)  # first, because its faults show before minutes of loading
        with reading(path_or_id):
            model = adapter.load_model(folder, config, dtype=chosen, **options)
    if "device_map" not in options:
        model = model.to(device)
    check_finite(folder, model)
    _attach_pooling_head(model, adapter.tower(model), folder, siglip, local_files_only=local_files_only)
    return model.eval(), processor


def default_num_frames(path_or_id: str | Path, *, local_files_only: bool = False) -> int:
    """Tell how many frames a checkpoint's model usually sees, from its `config.json` alone.

    Raises:
        TangoError: there is no such checkpoint.
        UnsupportedModelError: no adapter handles this type of model.
    """
    folder = resolve_folder(path_or_id, local_files_only=local_files_only, patterns=CONFIG_FILES)
    config, adapter = read_config(folder)
    return adapter.usual_num_frames(config)


def read_config(folder: Path) -> tuple[PretrainedConfig, type[Adapter]]:
    """Read the config of a checkpoint in either layout, as transformers' config; find the adapter of its family.

    Raises:
        CheckpointError: there is no usable config.
        UnsupportedModelError: no adapter handles this type of model.
    """
    from transformers import AutoConfig

    fields = check_config_file(folder)
    if lmms_lab.is_lmms_lab(folder):
        config = lmms_lab.read_config(folder)
    else:
        find_adapter(str(fields.get("model_type")))  # loads packages that tell transformers of their families
        with reading(folder / "config.json"):
            config = _part_that_sees(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        adapter_class(config)  # refused first: configs of unknown families may lack fields that are checked next
        check_config(folder / "config.json", config)
    return config, adapter_class(config)


def _part_that_sees(config: PretrainedConfig) -> PretrainedConfig:
    """The config of an Omni model's thinker; other models see as a whole."""
    thinker = getattr(config, "thinker_config", None)
    if thinker is None:
        return config
    thinker.dtype = thinker.dtype or config.dtype
    return thinker


def _make_processor(
    adapter: type[Adapter], folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> ChatProtocol:
    """Make the processor of a checkpoint, and try it on a conversation such as `tango.prepare` makes.

    Raises:
        CheckpointError: the tokenizer is another model's, or the chat template cannot be rendered.
    """
    with reading(f"the processor of {folder}"):
        processor = adapter.make_processor(folder, config, tokenizer)
    tokenizer, rows = processor.tokenizer, config.get_text_config().vocab_size
    found, expected = tokenizer.convert_tokens_to_ids(processor.placeholder), adapter.placeholder_id(config)
    count, mark = len(tokenizer), processor.video_token
    if mark != processor.placeholder and tokenizer.convert_tokens_to_ids(mark) == count - 1:
        count -= 1  # it never reaches the model, which may have no row for it
    if found != expected or count > rows:
        raise CheckpointError(
            f"the tokenizer of {folder} is not its model's: it has {count} tokens for {rows} rows of the "
            f"embedding, and {processor.placeholder} is {found}, where config.json says {expected}"
        )
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"the tokenizer of {folder} has no padding token; name one in tokenizer_config.json")
    content = [{"type": "video"}, {"type": "text", "text": "What happens?"}]
    with reading(f"the chat template of {folder}"):
        processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device of this name; None: CUDA if there is one, else the CPU.

    Raises:
        TangoError: there is no such device, or it cannot be used.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise TangoError(f"unknown device {str(device)!r}; expected cpu, cuda, cuda:1 ...") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise TangoError(f"no device {chosen}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    try:
        torch.empty(1, device=chosen)
    except Exception as error:  # absent backends raise errors of many types
        reason = " ".join(str(error).split())[:200]
        raise TangoError(f"the device {chosen} cannot be used: {reason}; expected cpu, cuda, cuda:1 ...") from error
    return chosen


def check_attention(name: str) -> None:
    """Refuse a name that transformers does not know. The name of a kernel on the hub, "owner/kernel", is not looked up.

    Raises:
        UnknownNameError: transformers has no such implementation.
    """
    from transformers import AttentionInterface

    known = ("eager", *AttentionInterface().valid_keys())
    if "/" not in name and name not in known:
        raise UnknownNameError("attention implementation", name, known)


def available_attention(name: str | None, device: torch.device) -> str | None:
    """The attention implementation to use: the named one, or sdpa with a warning where flash attention cannot run."""
    if name != "flash_attention_2":
        return name
    if find_spec("flash_attn") is None:
        reason = "needs the package flash-attn, which is not installed"
    elif device.type != "cuda":
        reason = f"needs a GPU, and the model is on the {device.type}"
    else:
        return name
    warnings.warn(f"flash_attention_2 {reason}; using sdpa", stacklevel=3)
    return "sdpa"


def _attach_pooling_head(
    model: PreTrainedModel, tower: PreTrainedModel, folder: Path, siglip: str | Path | None, *, local_files_only: bool
) -> None:
    """Find the pooling head and attach it as a plain attribute, so that saved checkpoints do not contain it.

    It goes to the tower's device, once, so that calls need not bring it there.
    """
    config = tower.config
    if config.model_type not in ("siglip_vision_model", "smolvlm_vision"):
        return
    if siglip is None and (folder / "siglip").is_dir():
        siglip = folder / "siglip"

    def attach(head: PoolingHead) -> None:
        model.__dict__["pooling_head"] = head.to(device_of(tower))

    if siglip is not None:
        attach(PoolingHead.from_pretrained(siglip, local_files_only=local_files_only))
    elif hasattr(tower, "head"):
        names = (name.rpartition(".") for name, _ in tower.named_parameters())
        own = {(part, name): weight_of(tower.get_submodule(part), name) for part, _, name in names}
        tensors = {f"{part}.{name}".lstrip("."): weight.detach().float() for (part, name), weight in own.items()}
        attach(PoolingHead.from_tensors(tensors, num_heads=config.num_attention_heads, eps=config.layer_norm_eps))
    elif (known := siglip_of(config)) is not None:
        try:
            attach(PoolingHead.from_pretrained(known, local_files_only=local_files_only))
        except TangoError as error:
            model.__dict__["pooling_head_missing"] = str(error)
