"""The stock processors that belong to Tango's own: they process images, and stand for ours in a saved checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tango.errors import CheckpointError, MissingPartError
from tango.models.processors.protocol import WrappedProcessor
from tango.video.sampling import one_line

if TYPE_CHECKING:
    from transformers import LlavaOnevisionProcessor, PretrainedConfig, PreTrainedTokenizerBase

_HALF = [0.5, 0.5, 0.5]  # SigLIP's statistics; the classes' defaults are CLIP's
# Fields of a preprocessor's file that name classes, not settings.
_NO_SETTINGS = ("image_processor_type", "feature_extractor_type", "video_processor_type", "processor_class", "auto_map")


def image_settings(folder: Path) -> dict[str, Any]:
    """Read how a checkpoint prepares images, from whichever file says it; {} where none does."""
    nested = _read(folder / "processor_config.json").get("image_processor")
    settings = _read(folder / "preprocessor_config.json") or nested or {}
    return {name: value for name, value in settings.items() if name not in _NO_SETTINGS}


def video_settings(folder: Path, *, or_images: bool = True) -> dict[str, Any]:
    """Read how a checkpoint prepares videos; where no file says it, how it prepares images, unless `or_images` is
    False."""
    nested = _read(folder / "processor_config.json")
    settings = _read(folder / "video_preprocessor_config.json") or nested.get("video_processor")
    if not settings and or_images:
        settings = _read(folder / "preprocessor_config.json") or nested.get("image_processor")
    return settings or {}


def pixel_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of the three colours, which a checkpoint's tower was trained with.

    Raises:
        CheckpointError: no file says them; the classes' defaults may be another tower's.
    """
    settings = video_settings(folder)
    found = [settings.get(name) for name in ("image_mean", "image_std")]
    if not all(isinstance(x, list) and len(x) == 3 for x in found) or 0 in (found[1] or []):
        raise CheckpointError(
            f"{folder} does not say how its tower's pixels are normalised; expected image_mean and image_std, three "
            f"numbers each, in preprocessor_config.json, got {found[0]!r} and {found[1]!r}"
        )
    return found[0], found[1]  # type: ignore[return-value]


def processor_name(folder: Path) -> str | None:
    """The class of a checkpoint's stock processor, from the first file that names one, as for `AutoProcessor`."""
    files = ("processor", "preprocessor", "video_preprocessor", "tokenizer")
    names = (_read(folder / f"{file}_config.json").get("processor_class") for file in files)
    return next((name for name in names if name), None)


def llava_onevision(
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: PretrainedConfig,
    images: Mapping[str, object],
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
) -> LlavaOnevisionProcessor:
    """Make the `LlavaOnevisionProcessor` for a model of this config.

    Args:
        images: settings that override those that follow from the config.
        statistics: mean and deviation of the three colours; None: SigLIP's.
    Raises:
        ImportError: torchvision is not installed.
    """
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    side = config.vision_config.image_size
    shared = {"size": {"height": side, "width": side}, "image_mean": _HALF, "image_std": _HALF}
    if statistics is not None:
        shared |= {"image_mean": list(statistics[0]), "image_std": list(statistics[1])}
    strategy = getattr(config, "vision_feature_select_strategy", "full")
    pinpoints = [list(pair) for pair in config.image_grid_pinpoints]
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(**{**shared, "image_grid_pinpoints": pinpoints, **images}),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**shared),
        num_image_tokens=(side // config.vision_config.patch_size) ** 2 + (strategy == "default"),  # and CLS
        vision_feature_select_strategy=strategy,
        vision_aspect_ratio=getattr(config, "vision_aspect_ratio", "anyres_max_9"),
    )


def wrapped(folder: Path, *, default_num_frames: int) -> WrappedProcessor:
    """Wrap the stock processor of a checkpoint, so that it takes Tango's videos and adds the times of their frames.

    Raises:
        MissingPartError: torchvision, which the stock processor needs, is not installed.
    """
    from transformers import AutoProcessor

    try:
        processor = WrappedProcessor(AutoProcessor.from_pretrained(folder, trust_remote_code=False))
    except ImportError as error:
        raise MissingPartError(
            f"this model's processor is transformers' own, which needs torchvision ({one_line(error)}); "
            "pip install torchvision"
        ) from error
    processor.tokenizer.padding_side = "left"
    processor.default_num_frames = default_num_frames
    return processor


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
