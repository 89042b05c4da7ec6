"""Finding a checkpoint's files: a local folder, or a hub id that is downloaded once and cached."""

from __future__ import annotations

from pathlib import Path

from tango.errors import TangoError

# Files that a checkpoint needs; none of them can run code.
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# Checkpoints that come with Tango, by name.
PACKAGED = {"tango-mini": Path(__file__).parents[1] / "mini" / "weights"}
CONFIG_FILES = ["config.json", "adapter_config.json"]  # enough to tell what a checkpoint is


def resolve_folder(
    path_or_id: str | Path,
    *,
    local_files_only: bool = False,
    revision: str | None = None,
    patterns: list[str] = _PATTERNS,
) -> Path:
    """Find the local folder of a checkpoint, downloading it if need be; "tango-mini" is the model that Tango brings.

    Raises:
        TangoError: there is no such folder, and the hub does not give such a checkpoint.
    """
    name = str(path_or_id)
    try:
        folder = PACKAGED.get(name) or Path(path_or_id).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, or an unknown home
        raise TangoError(f"no checkpoint at {name[:200]!r}: {error}") from error
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise TangoError(f"no checkpoint at {name!r}: expected a folder with config.json, or a hub id owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, allow_patterns=patterns, revision=revision, local_files_only=local_files_only)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TangoError(f"cannot get {name!r}: it is no local folder, and the hub answered: {reason}") from error


def resolve_files(path_or_id: str | Path, *, local_files_only: bool = False) -> list[Path]:
    """Find `config.json` and all safetensors files of a checkpoint.

    Raises:
        TangoError: one of them is missing, or the checkpoint cannot be found.
    """
    folder = resolve_folder(
        path_or_id,
        local_files_only=local_files_only,
        patterns=["config.json", "*.safetensors", "*.safetensors.index.json"],
    )
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise TangoError(f"{folder} is no checkpoint: expected config.json and *.safetensors files in it")
    return [folder / "config.json", *weights]
