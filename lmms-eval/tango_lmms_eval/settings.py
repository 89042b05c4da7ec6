"""From `--model_args` and the environment to what an `Answerer` needs: every argument known, checked and explicit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tango import OptionError, TangoError
from tango.evaluation import MethodConfig, import_packages, read_option

# name: (field it sets, how it is read). The first name of a field is ours, the others lmms-eval's.
ARGUMENTS: dict[str, tuple[str, Any]] = {
    "pretrained": ("pretrained", str),
    "batch_size": ("batch_size", int),
    "num_frames": ("num_frames", int),
    "max_frames_num": ("num_frames", int),
    "max_num_frames": ("num_frames", int),
    "dtype": ("dtype", str),
    "torch_dtype": ("dtype", str),
    "device": ("device", str | None),
    "attn_implementation": ("attn_implementation", str | None),
    "siglip": ("siglip", str | None),
    "video_backend": ("video_backend", str),
    "video_decode_backend": ("video_backend", str),
    "time_instruction": ("time_instruction", str),
    "add_time_instruction": ("time_instruction", bool),
    "vision_marks": ("vision_marks", str | None),
    "static_cache": ("static_cache", bool),
    "min_pixels": ("min_pixels", int | None),
    "max_pixels": ("max_pixels", int | None),
    "local_files_only": ("local_files_only", bool),
    "workers": ("workers", int),
    "max_ahead": ("max_ahead", int),
    "journal": ("journal", str | None),
}

# Arguments of lmms-eval's own classes that commands in the wild carry. The values are those that describe what happens
# here anyway; None: any, for it makes no difference here.
UPSTREAM: dict[str, tuple[Any, ...] | None] = {
    "model_name": None,
    "device_map": None,
    "max_batch_size": None,
    "truncation": None,
    "truncate_context": None,
    "use_cache": None,
    "overwrite": None,
    "delay_load": None,
    "tie_weights": None,
    "conv_template": ("qwen_1_5", "qwen_2"),
    "token_strategy": ("single",),
    "mm_spatial_pool_stride": (2,),
    "mm_resampler_type": ("spatial_pool",),
    "mm_resampler_location": ("before",),
    "force_sample": (True,),
    "add_faster_video": (False,),
    "interleave_visuals": (False,),
    "system_prompt": ("You are a helpful assistant.",),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run, decided once at its start.

    `arguments` are those of `tango.evaluation.Answerer`. `journal` is the folder asked for; None: no journal; "": the
    default one, in the output folder.
    """

    method: MethodConfig
    arguments: dict[str, Any]
    journal: str | None = ""

    @property
    def name(self) -> str:
        """A folder name that differs between runs whose answers may differ."""
        speed = ("device", "workers", "max_ahead", "local_files_only")
        kept = {name: value for name, value in self.arguments.items() if name not in speed}
        described = json.dumps([self.method.to_dict(), kept], sort_keys=True)
        return f"{self.method.label}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def read_settings(
    model_args: Mapping[str, Any], environ: Mapping[str, str], *, describes: Mapping[str, Any] | None = None
) -> Settings:
    """Settle every argument; `--model_args` go before `WRAPPER` and `TANGO_*`. Packages in `TANGO_IMPORT` come first.

    Args:
        describes: more entries of `UPSTREAM` that hold for one model.
    Raises:
        TangoError: an argument, a method or an option is unknown or has a value that it cannot have.
    """
    import_packages(environ.get("TANGO_IMPORT", ""))
    upstream = {**UPSTREAM, **(describes or {})}
    ours: dict[str, Any] = {}
    others = []
    for source in (model_args, MethodConfig.settings_from_environment(environ)):
        rest = {}
        for name, value in source.items():
            if name in ARGUMENTS:
                field, kind = ARGUMENTS[name]
                value = read_option(name, value, kind)
                if name == "add_time_instruction":
                    value = "frames" if value else "none"
                ours.setdefault(field, value)
            elif name in upstream:
                _check_upstream(name, value, upstream[name])
            else:
                rest[name] = value
        others.append(rest)
    if "pretrained" not in ours:
        raise OptionError("no checkpoint given; add pretrained=<hub id or local folder> to --model_args")
    try:
        method = MethodConfig.from_settings(*others)
    except TangoError as error:
        if not (unknown := sorted({*others[0], *others[1]} - {"method", "wrapper"})):
            raise
        known = ", ".join(sorted(ARGUMENTS))
        raise OptionError(
            f"{error} (read as options of the method: {', '.join(unknown)}; arguments of the model are: {known})"
        ) from error
    journal = ours.pop("journal", "")
    return Settings(method=method, arguments=ours, journal=journal)


def _check_upstream(name: str, value: Any, allowed: tuple[Any, ...] | None) -> None:
    if allowed is not None and str(value).lower() not in [str(a).lower() for a in allowed]:
        known = " or ".join(str(a) for a in allowed)
        raise OptionError(f"{name}={value} is not supported: this model works as with {name}={known}; leave it out")
