"""What of the toolkit's runner (ms-vlmeval 0.0.20) is replaced, in memory and for one process, each with its reason.

The data sets' classes, prompts and scores are the toolkit's own.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock

from tango import TangoError
from tango_vlmeval import inference
from tango_vlmeval.data import trust
from tango_vlmeval.mini import TangoMini
from tango_vlmeval.model import Tango
from tango_vlmeval.settings import Run

log = logging.getLogger(__name__)


def apply(runner: Any, run: Run) -> None:
    """Patch `vlmeval.run`, which is given as `runner`, for one run."""
    _take_settings(runner, run)
    _use_gloo()
    _write_whole_files()
    _write_whole_clips()
    _prepare_data(runner, run)
    _infer(runner)


def _take_settings(runner: Any, run: Run) -> None:
    """Register the models and our data set; the file given by --config has been read and resolved by us."""
    import vlmeval.dataset
    from vlmeval.config import supported_VLM

    vlmeval.dataset.TangoMini = TangoMini
    rank = int(os.environ.get("RANK", 0))
    for name, model in run.models.items():
        journal = run.work_dir / name / "journal"
        supported_VLM[name] = partial(Tango, method=model.method, journal=journal, rank=rank, **model.arguments)
    runner.load = lambda _path: run.config
    build, number = runner.build_model_from_config, count(1)

    def build_and_restore(*args: Any, **kwargs: Any) -> Any:
        # The toolkit hides WORLD_SIZE while it builds a model, and for registered ones forgets to bring it back:
        # then every process would answer all questions. The model before is let go first; two may not fit.
        gc.collect()
        before = os.environ.get("WORLD_SIZE")
        if rank == 0 and len(run.config["model"]) > 1:
            print(f"== {next(number)} of {len(run.config['model'])}: {args[1]}", file=sys.stderr, flush=True)
        model = build(*args, **kwargs)
        if before is not None:
            os.environ["WORLD_SIZE"] = before
        return model

    runner.build_model_from_config = build_and_restore


def _use_gloo() -> None:
    """Let processes talk by gloo; the toolkit insists on nccl, which needs GPUs and hangs when a process dies.

    All that is exchanged are barriers and a few numbers.
    """
    import torch.distributed

    start = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend=None, **options: start(backend="gloo", **options)  # noqa: ARG005
    os.environ.setdefault("DIST_TIMEOUT", str(24 * 3600))  # s; one process unpacks or scores while the others wait


def _write_whole_files() -> None:
    """Make the toolkit's tables appear as a whole or not at all: a torn one would stop every later run."""
    from vlmeval.smp import dump

    def dump_whole(data: Any, path: str, **options: Any) -> None:
        target = Path(path)
        unfinished = target.with_name(f".{os.getpid()}-{target.name}")
        dump(data, str(unfinished), **options)
        os.replace(unfinished, target)

    for name, module in list(sys.modules.items()):
        if name.startswith(("vlmeval.", "tango_vlmeval.")) and vars(module).get("dump") is dump:
            module.dump = dump_whole  # type: ignore[attr-defined]


def _write_whole_clips() -> None:
    """The same for the clips that MVBench cuts; without moviepy's progress bars, of which there would be hundreds."""
    from moviepy.video.VideoClip import VideoClip

    write = VideoClip.write_videofile

    def write_whole(self: Any, path: str, *args: Any, **options: Any) -> None:
        target = Path(path)
        unfinished = target.with_name(f".{os.getpid()}-{target.name}")
        write(self, str(unfinished), *args, **{"logger": None, "temp_audiofile": f"{unfinished}.mp3", **options})
        os.replace(unfinished, target)

    VideoClip.write_videofile = write_whole


def _prepare_data(runner: Any, run: Run) -> None:
    """Build data sets in one process after the other, cut to --limit, which the toolkit ignores for videos."""
    from vlmeval.dataset import MVBench
    from vlmeval.smp import HFCacheRoot

    lock = Path(HFCacheRoot()) / ".locks" / "tango-data.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    build = runner.build_dataset_from_config
    trust({entry.get("dataset") for entry in run.config["data"].values()}, everything=run.trust_local_data)

    def build_in_turn(config: Any, name: str) -> Any:
        # Each process of the toolkit, of this run or another, writes the table of questions anew, while others read it.
        with FileLock(lock):  # gone with the process, however it ends
            dataset = build(config, name)
            if dataset is None or dataset.MODALITY != "VIDEO":
                return dataset
            if run.limit is not None:
                dataset.data = dataset.data.iloc[: run.limit].copy()
            if isinstance(dataset, MVBench):
                # It cuts each file once, with the bounds of whichever question comes first. Here that is the order of
                # the table, for any number of processes.
                _cut_clips(dataset)
        return dataset

    runner.build_dataset_from_config = build_in_turn


def _cut_clips(dataset: Any) -> None:
    for _, line in dataset.data.iterrows():
        try:
            dataset.load_into_video_and_process(line)
        except ImportError:
            raise
        except Exception:
            log.info("cannot cut %s; its questions will say why", line["video"])


def _infer(runner: Any) -> None:
    """Answer with read-ahead and journal; all processes agree on what is finished, and stop together."""
    import vlmeval.inference_video as module

    infer_data, job = module.infer_data, runner.infer_data_job_video

    def infer_with_journal(model: Any, **options: Any) -> Any:
        if not isinstance(model, Tango):
            return infer_data(model, **options)
        try:
            return inference.infer(infer_data, model, **options)
        except TangoError as error:  # the next data set would meet it, too
            raise SystemExit(f"error: {error}") from error
        except Exception:
            if int(os.environ.get("WORLD_SIZE", 1)) == 1:
                raise
            # The toolkit would go on with the next data set, and wait there for processes that are still at this one.
            import traceback

            traceback.print_exc()
            raise SystemExit(1) from None

    def job_unless_finished(model: Any, **options: Any) -> Any:
        # Where predictions are complete the toolkit returns in the first process alone; the others ask everything
        # again and wait for it.
        indices = options["dataset"].data["index"].tolist()
        if runner.is_prediction_complete(options["result_file"], indices, options.get("retry_failed", True)):
            return model
        return job(model, **options)

    module.infer_data = infer_with_journal
    module.tqdm = lambda items: items  # our own bar shows the time left as well
    runner.infer_data_job_video = job_unless_finished
