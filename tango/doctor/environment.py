"""Checks of the installed packages and of the folders that Tango writes to."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from tango.doctor import DATA, Finding
from tango.doctor.worker import one_line

_OURS = "tango-video"
_MODULES = {"pyyaml": "yaml", "pillow": "PIL"}
_GIB = 1 << 30
_ENOUGH = 4 * _GIB


def python() -> Finding:
    """Python 3.10 to 3.13."""
    detail = f"Python {sys.version.split()[0]}, {sys.executable}"
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", "ok", detail)
    return Finding("python", "failed", f"{detail}; Tango needs 3.10 to 3.13", "make an environment with one of these")


def tested_set() -> dict[str, dict[str, object]]:
    """For every package that matters: `at_least`, the lowest version that works, and the `tested` ones."""
    return json.loads((DATA / "tested.json").read_text(encoding="utf-8"))


def _key(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])


def versions() -> Finding:
    """Installed versions against the lowest that work and those that are tested."""
    wrong, other, fine = [], [], []
    for name, known in tested_set().items():
        lowest, tested = str(known["at_least"]), known["tested"]
        assert isinstance(tested, list)
        try:
            found = version(name)
        except PackageNotFoundError:
            wrong.append((f"{name} is not installed", f"{name}>={lowest}"))
            continue
        if _key(found) < _key(lowest):
            wrong.append((f"{name} {found} is older than {lowest}", f"{name}>={lowest}"))
        elif found.partition("+")[0] in tested:
            fine.append(f"{name} {found}")
        else:
            other.append(f"{name} {found} (tested: {', '.join(tested)})")
    if wrong:
        way_out = "pip install " + " ".join(f"'{needed}'" for _, needed in wrong)
        return Finding("versions", "failed", "; ".join(what for what, _ in wrong), way_out)
    if other:
        return Finding("versions", "note", f"not the tested versions: {'; '.join(other)}")
    return Finding("versions", "ok", ", ".join(fine))


def packages() -> Finding:
    """Every package that Tango needs can be imported."""
    broken = {}
    for name in tested_set():
        try:
            import_module(_MODULES.get(name, name))
        except Exception as error:
            broken[name] = one_line(error)
    if not broken:
        return Finding("packages", "ok", f"{len(tested_set())} packages can be imported")
    detail = "; ".join(f"{name} cannot be imported ({why})" for name, why in broken.items())
    return Finding("packages", "failed", detail, f"pip install --force-reinstall {' '.join(broken)}")


def name_clash() -> Finding:
    """No other distribution puts files into the package `tango`; PyTango, for one, uses the name, too."""
    import tango

    folder = Path(tango.__file__ or "").parent
    # Not by `packages_distributions`: on Python 3.10 it misses those that state no top level.
    holders = [d for d in distributions() if any(file.parts[:1] == ("tango",) for file in d.files or ())]
    others = sorted({str(d.metadata["Name"]) for d in holders} - {_OURS})
    if not others:
        return Finding("name_clash", "ok", f"tango is {folder}")
    detail = f"other distributions also install a package named tango: {', '.join(others)}; this one is {folder}"
    way_out = f"pip uninstall {' '.join(others)}, then pip install --force-reinstall --no-deps {_OURS}"
    return Finding("name_clash", "failed", detail, way_out)


def write_rights() -> Finding:
    """Files can be written to the cache of models, the current folder and the temporary folder."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = {"the Hugging Face cache": Path(HF_HUB_CACHE), "the current folder": Path.cwd()}
    folders["the temporary folder"] = Path(tempfile.gettempdir())
    closed = []
    for what, folder in folders.items():
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)):
                pass
        except OSError as error:
            closed.append(f"{what}, {folder}, cannot be written ({error.strerror})")
    if closed:
        way_out = "set HF_HOME or TMPDIR to another folder, change folder, or ask for rights"
        return Finding("write_rights", "failed", "; ".join(closed), way_out)
    return Finding("write_rights", "ok", ", ".join(f"{what} {folder}" for what, folder in folders.items()))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists; the missing ones are made when they are needed."""
    return next((f for f in (folder, *folder.parents) if f.exists()), folder)


def memory() -> Finding:
    """Memory that this process may use, and free space on the disk of the cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    limits = {"free memory": _available()}
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if file.exists() and (text := file.read_text(encoding="ascii").strip()).isdigit() and int(text) < 1 << 60:
            limits["the container's limit"] = int(text)
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            limits["the limit on addresses (ulimit -v)"] = soft
    free_gib = shutil.disk_usage(_existing(Path(HF_HUB_CACHE))).free / _GIB
    known = {what: size for what, size in limits.items() if size is not None}
    detail = ", ".join(f"{what} {size / _GIB:.1f} GiB" for what, size in known.items())
    detail = f"{detail or 'memory unknown'}, free disk for the cache {free_gib:.0f} GiB"
    if min(known.values(), default=_ENOUGH) < _ENOUGH:
        return Finding("memory", "note", f"{detail}; a 7B model needs some 20 GiB", "free memory, or raise the limit")
    return Finding("memory", "ok", detail)


def _available() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else None


def pooling_head() -> Finding:
    """The SigLIP whose pooling head Tango uses on LLaVA is cached, or the hub can be reached. Nothing is downloaded."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    from tango.models.pooling_head import DEFAULT_SIGLIP

    if isinstance(try_to_load_from_cache(DEFAULT_SIGLIP, "model.safetensors"), str):
        return Finding("pooling_head", "ok", f"{DEFAULT_SIGLIP} is in the cache")
    try:
        get_hf_file_metadata(hf_hub_url(DEFAULT_SIGLIP, "config.json"), timeout=5)
    except Exception as error:
        detail = f"{DEFAULT_SIGLIP} is not cached and the hub cannot be reached ({one_line(error)[:120]})"
        return Finding("pooling_head", "note", detail, "go online once, or pass a local folder as --siglip")
    return Finding("pooling_head", "ok", f"{DEFAULT_SIGLIP} can be downloaded when it is needed")
