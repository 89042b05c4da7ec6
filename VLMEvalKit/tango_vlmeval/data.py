"""The data sets' files in the hub cache: getting them ready once, and recognising them later.

python -m tango_vlmeval.data Video-MME MVBench
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tango.evaluation import write_json

PREPARED = "tango_prepared.json"


@dataclass(frozen=True)
class Source:
    """Where a data set of the toolkit lives."""

    class_name: str
    repository: str


SOURCES = {
    "Video-MME": Source("VideoMME", "lmms-lab/Video-MME"),
    "MVBench": Source("MVBench", "OpenGVLab/MVBench"),
    "LongVideoBench": Source("LongVideoBench", "longvideobench/LongVideoBench"),
    "MLVU_MCQ": Source("MLVU_MCQ", "MLVU/MVLU"),
}


def trust(names: Iterable[str], *, everything: bool = False) -> None:
    """Have the toolkit accept the tables of questions that were prepared here, by this module.

    The toolkit compares a table with a checksum that holds for one version of pandas; where it differs, the table is
    made anew at every start, and MVBench and MLVU ask for a login before that.

    Args:
        names: data sets; those that are not downloaded do not count.
        everything: also tables that came here in another way.
    """
    import vlmeval.dataset

    for name in SOURCES.keys() & set(names):
        table = _table(name)
        if table is None:
            continue
        digest = _md5(table)
        if everything or _prepared(table.parent).get(table.name) == digest:
            getattr(vlmeval.dataset, SOURCES[name].class_name).MD5 = digest


def prepare(name: str) -> int:
    """Unpack a downloaded data set and make its table, as the toolkit's class does it; the number of questions."""
    import huggingface_hub
    import vlmeval.dataset

    huggingface_hub.login = lambda *_args, **_options: None  # asked for even if all files are here
    dataset = getattr(vlmeval.dataset, SOURCES[name].class_name)(dataset=name, nframe=32)
    table = Path(dataset.data_file)
    write_json(table.parent / PREPARED, {**_prepared(table.parent), table.name: _md5(table)})
    if name == "Video-MME":
        _link_for_lmms_eval(table.parent)
    return len(dataset.data)


def _link_for_lmms_eval(folder: Path) -> None:
    """Let lmms-eval find the same videos; it would download all of them once more."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "videomme"
    home.mkdir(parents=True, exist_ok=True)
    for theirs, ours in (("data", "video"), ("subtitle", "subtitle")):
        if not (home / theirs).exists():
            (home / theirs).symlink_to((folder / ours).resolve())


def _table(name: str) -> Path | None:
    from vlmeval.smp import get_cache_path

    folder = get_cache_path(SOURCES[name].repository)
    table = folder and Path(folder) / f"{name}.tsv"
    return table if table and table.is_file() else None


def _prepared(folder: Path) -> dict[str, Any]:
    path = folder / PREPARED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def main() -> int:
    """Prepare the data sets that are named."""
    parser = argparse.ArgumentParser(description="Unpack downloaded data sets and make their tables of questions.")
    parser.add_argument("names", nargs="+", choices=SOURCES, metavar="NAME", help=", ".join(SOURCES))
    names = parser.parse_args().names
    os.environ.setdefault("VLMEVALKIT_USE_MODELSCOPE", "0")
    for name in names:
        print(f"{name}: {prepare(name)} questions", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
