"""What takes the place of the toolkit's bookkeeping around inference: read-ahead, the journal, a record of the run."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from vlmeval.dataset import LongVideoBench
from vlmeval.smp import dump

from tango import OptionError
from tango.evaluation import Answer, Efficiency, Question, write_json
from tango_vlmeval.model import Message, Tango
from tango_vlmeval.settings import is_first_process

log = logging.getLogger(__name__)


class ReadAhead:
    """Stands between the toolkit and a data set, and has the questions answered that are going to be asked.

    The toolkit builds one prompt, asks, and only then builds the next, always in the order of `positions`. Here each
    prompt that it builds is answered along with those that follow; a prompt out of order starts anew from there.
    A prompt that cannot be built, because a clip cannot be cut out of a broken video, is a failed question.
    """

    def __init__(self, model: Tango, dataset: Any, positions: list[int]):
        self._model, self._positions = model, positions
        self._build = dataset.build_prompt
        self._expected: Iterator[int] = iter(())
        self._results = self._answer([])
        self.answers: dict[int, Answer] = {}

    def build_prompt(self, position: int, video_llm: bool = True) -> Message:  # noqa: ARG002
        """The prompt at this position. Its answer is ready when this returns."""
        if next(self._expected, None) != position:
            rest = self._positions[self._positions.index(position) :]
            self._expected, self._results = iter(rest[1:]), self._answer(rest)
        self._model.ready = message, self.answers[position] = next(self._results)
        return message

    def close(self) -> None:
        """Stop reading ahead."""
        self._results.close()

    def _answer(self, positions: list[int]) -> Generator[tuple[Message, Answer], None, None]:
        drawn: deque[Message | Exception] = deque()

        def questions() -> Iterator[Question]:
            for position in positions:
                drawn.append(self._message(position))
                if not isinstance(drawn[-1], Exception):
                    yield self._model.question(drawn[-1])

        shown = {"progress": is_first_process(), "total": len(positions)}
        with closing(self._model.answerer.answers(questions(), **shown)) as answers:
            for answer in answers:
                message = drawn.popleft()
                while isinstance(message, Exception):
                    yield _failed(message)
                    message = drawn.popleft()
                yield message, answer
            yield from map(_failed, drawn)

    def _message(self, position: int) -> Message | Exception:
        try:
            return self._build(position, video_llm=True)
        except ImportError:  # not the video's fault
            raise
        except Exception as error:  # moviepy raises whatever it stumbles over in a broken file
            return error


def _failed(error: Any) -> tuple[Message, Answer]:
    text = f"{type(error).__name__}: {error}".splitlines()[0]  # moviepy appends all that ffmpeg printed
    log.warning("no prompt: %s", text)
    return [], Answer(text="", error=text)


def infer(toolkit: Any, model: Tango, dataset: Any, out_file: str, **options: Any) -> Any:
    """Run the toolkit's `infer_data` with read-ahead, and leave a record of the answers beside its results.

    The toolkit's own partial results, pickles of every 20 answers, are dropped: the journal has all of them, works for
    any number of processes, and tells the times of each answer.
    """
    if dataset.nframe <= 0:
        raise OptionError('Tango\'s models sample a number of frames; give "nframe" and not "fps" in the data entry')
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    positions = list(range(len(dataset.data)))[rank::world_size]
    dump({}, out_file)  # also for a process without a question, which the toolkit forgets
    model.nframe = dataset.nframe
    model.shows_frames = True
    ahead = ReadAhead(model, dataset, positions)
    dataset.build_prompt = ahead.build_prompt
    if isinstance(dataset, LongVideoBench):
        # For a prompt that shows the file itself it decodes all frames, drops them, and gives up when another process
        # does so for half a minute.
        dataset.save_video_frames = lambda *_args, **_options: ([], [], {"fps": 0.0})
    try:
        if positions:
            toolkit(model, dataset=dataset, out_file=out_file, **options)
    finally:
        ahead.close()
        for name in ("build_prompt", "save_video_frames"):
            vars(dataset).pop(name, None)  # the class's own again
    indices = dataset.data["index"].tolist()
    own = {
        "efficiency": Efficiency.of(ahead.answers.values(), device=model.answerer.efficiency().device).to_dict(),
        "failures": [
            {"index": indices[position], "error": answer.error}
            for position, answer in ahead.answers.items()
            if answer.error is not None
        ],
        "tokens": {
            str(indices[position]): (answer.visual_tokens_before, answer.mean_visual_tokens)
            for position, answer in ahead.answers.items()
            if answer.error is None
        },
    }
    stem = Path(out_file).stem.removeprefix(f"{rank}{world_size}_")
    _record(Path(out_file).with_name(f"{stem}_tango.json"), own, rank, world_size)
    return model


def _record(path: Path, own: dict[str, Any], rank: int, world_size: int) -> None:
    """Write what all processes found. It is there before the toolkit's table of predictions is."""
    parts = [own]
    if world_size > 1:
        import torch.distributed

        parts = [None] * world_size  # type: ignore[list-item]
        torch.distributed.all_gather_object(parts, own)
    if rank == 0:
        failures = sorted((one for part in parts for one in part["failures"]), key=lambda one: one["index"])
        efficiency = Efficiency.merge([part["efficiency"] for part in parts])
        print(efficiency.table(), flush=True)
        tokens = {index: counts for part in parts for index, counts in part["tokens"].items()}
        write_json(path, {"failures": failures, "efficiency": efficiency.to_dict(), "tokens": tokens})
