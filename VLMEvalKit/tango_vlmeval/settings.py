"""From flags, a model entry of the JSON file and the environment to the settings of a run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tango import OptionError
from tango.evaluation import MethodConfig, named_value, read_option, write_json

CLASS = "Tango"  # what a model entry names as its "class"
STORED = "tango_args.json"

RELEASE_FLAGS = {
    "retain-ratio": "fraction of the visual tokens to keep",
    "pruned-layer": "prune again at the input of this layer of the LLM",
    "pre-retain-ratio": "pre-LLM fraction kept if --pruned-layer is given (solved from --retain-ratio)",
    "similarity-threshold": "similarity from which on frames belong to one segment",
    "context-ratio": "share of the merged tokens",
    "alpha": "size of the candidate set, in budgets",
    "base-time": "base of the rotation over time",
    "base-space": "base of the rotation over rows and columns",
    "num-neighbors": "neighbours that the clustering looks at",
    "segment-type": "how the video is cut into segments: holitom or fastvid",
}


# What a model entry may say beside the method and its options, and how it is read.
ARGUMENTS: dict[str, Any] = {
    "pretrained": str,
    "siglip": str | None,
    "dtype": str,
    "device": str | None,
    "attn_implementation": str | None,
    "video_backend": str,
    "time_instruction": str,
    "vision_marks": str | None,
    "static_cache": bool,
    "batch_size": int,
    "workers": int,
    "max_ahead": int,
    "min_pixels": int | None,
    "max_pixels": int | None,
    "local_files_only": bool,
    "max_new_tokens": int,
    "video_first": bool,
}
_OF_SPEED = ("device", "batch_size", "workers", "max_ahead", "local_files_only")  # answers do not depend on them


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """One model with one method, decided once at the start of a run."""

    method: MethodConfig
    arguments: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All that the answers depend on."""
        kept = {name: value for name, value in self.arguments.items() if name not in _OF_SPEED}
        return {"method": self.method.to_record(), "arguments": kept}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `run.py` was asked to do. `models` are Tango's, by the names that their results go by."""

    models: dict[str, ModelSettings]
    config: dict[str, Any]  # as the toolkit takes it, with those names
    work_dir: Path
    limit: int | None
    trust_local_data: bool
    command: list[str]

    def store(self, *, write: bool) -> None:
        """Put the settings beside the results, unless results of other settings are there.

        Args:
            write: False only checks, for all processes but the first.
        Raises:
            OptionError: the folder holds results that were made with other settings.
        """
        for name, model in self.models.items():
            path = self.work_dir / name / STORED
            settings = {"model": model.to_dict(), "limit": self.limit, "data": dict(self.config["data"])}
            settings = json.loads(json.dumps(settings))
            if path.is_file():
                before = json.loads(path.read_text(encoding="utf-8"))["settings"]
                _check_same(path.parent, before, settings)
                settings["data"] = {**before["data"], **settings["data"]}
            if write:
                write_json(path, {"command": shlex.join(self.command), "settings": settings})


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    pairs = [("model", before["model"], now["model"]), ("limit", before["limit"], now["limit"])]
    pairs += [(name, before["data"][name], entry) for name, entry in now["data"].items() if name in before["data"]]
    for what, old, new in pairs:
        if old != new:
            raise OptionError(
                f"{folder} holds results of other settings; {what}: got {new}, there {old}. "
                "Choose another --work-dir, or remove that folder to start over"
            )


def parser() -> argparse.ArgumentParser:
    """The flags that are ours; all others are the toolkit's."""
    ours = argparse.ArgumentParser(
        prog="run.py", add_help=False, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Evaluate Tango's models with VLMEvalKit. Flags go before the entry in the JSON file, that before\n"
        "WRAPPER and TANGO_<NAME> in the environment. Flags that are not listed here are the toolkit's own.\n"
        "The same command again resumes: finished answers are kept, whatever ended the run before.",
    )  # fmt: skip
    ours.add_argument("-h", "--help", action="store_true", help="show this and the toolkit's own flags")
    ours.add_argument("--config", metavar="JSON", help="models and data sets, e.g. run_config/llava_onevision_7b.json")
    ours.add_argument("--method", metavar="NAME", help="pruning method ('none': all tokens)")
    for flag, text in RELEASE_FLAGS.items():
        ours.add_argument(f"--{flag}", metavar="X", help=text)
    ours.add_argument("--methods", metavar="NAME", nargs="+",
                      help="several methods, one after the other in one process, each at all of --ratios")  # fmt: skip
    ours.add_argument("--ratios", metavar="X", nargs="+", help="several values of --retain-ratio")
    ours.add_argument("--option", metavar="NAME=VALUE", action="append", default=[],
                      help="any other option of the method, or key of a model entry; may be repeated")  # fmt: skip
    ours.add_argument("--import", dest="imports", metavar="PKG", action="append", default=[],
                      help="first import this package, for the methods and models that it registers; may be repeated, "
                      "and TANGO_IMPORT in the environment names more, with commas between")  # fmt: skip
    ours.add_argument("--pretrained", metavar="PATH", help="checkpoint: hub id or folder, in place of the entry's")
    ours.add_argument("--batch-size", metavar="N", help="questions answered together (1)")
    ours.add_argument("--workers", metavar="N", help="threads that read videos ahead; 0: none")
    ours.add_argument("--datasets", metavar="NAME", nargs="+", help="only these data sets of the JSON file")
    ours.add_argument("--data-option", metavar="NAME=VALUE", action="append", default=[],
                      help="a key of every data entry, such as nframe=16; may be repeated")  # fmt: skip
    ours.add_argument("--limit", "--max-samples", metavar="N", help="only the first N questions of each data set")
    ours.add_argument("--work-dir", metavar="FOLDER", default="./outputs", help="where results go (./outputs)")
    ours.add_argument("--trust-local-data", action="store_true",
                      help="take the TSV files in the hub cache as they are, whatever their checksum")  # fmt: skip
    return ours


def resolve(flags: argparse.Namespace, environ: Mapping[str, str]) -> Run:
    """Settle everything before anything heavy is imported.

    Raises:
        TangoError: a name is unknown, a value is not possible, or the JSON file cannot be used.
    """
    config = _read_config(flags.config)
    chosen = {name.replace("-", "_"): getattr(flags, name.replace("-", "_")) for name in RELEASE_FLAGS}
    chosen |= {name: getattr(flags, name) for name in ("method", "pretrained", "batch_size", "workers")}
    given = {name: value for name, value in chosen.items() if value is not None}
    given |= {name.replace("-", "_"): value for name, value in map(named_value, flags.option)}
    limit = None if flags.limit is None else _read("limit", flags.limit, int)
    models: dict[str, ModelSettings] = {}
    entries: dict[str, Any] = {}
    for key, entry in config["model"].items():
        if entry.get("class") != CLASS:
            entries[key] = entry
            continue
        own = {name: value for name, value in entry.items() if name != "class"}
        for chosen in _combinations(flags):
            model = _model(key, {**given, **chosen}, own, MethodConfig.settings_from_environment(environ))
            name = f"{key}-{model.method.label}" + (f"-limit{limit}" if limit is not None else "")
            models[name], entries[name] = model, {}
    pairs = [named_value(text, flag="--data-option") for text in flags.data_option]
    data_options = {name.replace("-", "_"): _number_or_text(value) for name, value in pairs}
    data = {key: {**entry, **data_options} for key, entry in _choose(config["data"], flags.datasets).items()}
    return Run(
        models=models,
        config={"model": entries, "data": data},
        work_dir=Path(environ.get("MMEVAL_ROOT", flags.work_dir)),  # the toolkit gives the variable precedence
        limit=limit,
        trust_local_data=flags.trust_local_data,
        command=sys.argv,
    )


def _number_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _combinations(flags: argparse.Namespace) -> list[dict[str, str]]:
    """What --methods and --ratios add to the other settings, run by run; all tokens have no ratio."""
    for several, one in (("methods", "method"), ("ratios", "retain_ratio")):
        if getattr(flags, several) and getattr(flags, one):
            raise OptionError(f"give --{one.replace('_', '-')} or --{several}, not both")
    methods: list[Any] = flags.methods or [None]
    found = []
    for method in methods:
        for ratio in [None] if method == "none" else flags.ratios or [None]:
            chosen = {"method": method, "retain_ratio": ratio}
            found.append({name: value for name, value in chosen.items() if value is not None})
    return found


def _read_config(path: str | None) -> dict[str, Any]:
    if path is None:
        raise OptionError("--config is missing; the ready ones are in run_config/")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        if not all(isinstance(entry, dict) for part in ("model", "data") for entry in config[part].values()):
            raise TypeError
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OptionError(f'{path} must be JSON with entries under "model" and "data"') from None
    return config


def _model(key: str, *sources: Mapping[str, Any]) -> ModelSettings:
    arguments: dict[str, Any] = {}
    of_method = []
    for source in sources:
        of_method.append({name: value for name, value in source.items() if name not in ARGUMENTS})
        for name in source.keys() & ARGUMENTS.keys():
            arguments.setdefault(name, _read(name, source[name], ARGUMENTS[name]))
    if "pretrained" not in arguments:
        raise OptionError(f'model {key} has no checkpoint; add "pretrained" to its entry, or --pretrained')
    return ModelSettings(method=MethodConfig.from_settings(*of_method), arguments=arguments)


def _read(name: str, value: Any, kind: Any) -> Any:
    value = read_option(name, value, kind)
    if isinstance(value, int) and value < 0:
        raise OptionError(f"{name} must be 0 or more, got {value}")
    return value


def _choose(data: Mapping[str, Any], names: list[str] | None) -> dict[str, Any]:
    """The data sets of these names: keys of the JSON file, or what their entries call "dataset"."""
    if names is None:
        return dict(data)
    chosen: dict[str, Any] = {}
    for name in names:
        found = {key: entry for key, entry in data.items() if name in (key, entry.get("dataset"))}
        if not found:
            raise OptionError(f"no data set {name!r} in the JSON file; there are {', '.join(data)}")
        chosen |= found
    return chosen


def is_first_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that writes what there is only one of."""
    return environ.get("RANK", "0") == "0"
