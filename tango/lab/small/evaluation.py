"""Ask a model the questions of tango-small, about scenes of clips that it was not trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tango.lab.small.questions import ask_all
from tango.lab.small.scenes import draw_scene, render
from tango.lab.small.sources import Sources
from tango.mini.evaluation import Control, Record, ask_about

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tango.models.processors.protocol import ChatProtocol

TEST = 2  # every scene's seed begins with it; those of training begin with 1


def seed_of(index: int) -> tuple[int, ...]:
    """The seed of scene number `index`."""
    return (TEST, 0, index)


def num_questions(index: int, sources: Sources) -> int:
    """How many questions there are about a scene."""
    return len(ask_all(draw_scene(seed_of(index), sources), sources))


def evaluate(
    model: PreTrainedModel,
    processor: ChatProtocol,
    sources: Sources,
    indices: Iterable[int],
    *,
    num_frames: int | None = None,
    control: Control = "none",
) -> Iterator[list[Record]]:
    """Yield the records of one scene after the other, one record for each of its questions.

    Args:
        sources: of the split "test".
        control: as in `tango.mini.evaluation.evaluate`; "other" shows the next scene.
    """
    side = model.config.vision_config.image_size
    for index in indices:
        questions = ask_all(draw_scene(seed_of(index), sources), sources)
        shown = draw_scene(seed_of(index + (control == "other")), sources)
        video = render(shown, sources, num_frames=num_frames or processor.default_num_frames, side=side)
        if control == "blank":
            video.frames.fill_(127)
        name = "TangoSmall" if control == "none" else f"TangoSmall-{control}"
        about = {"benchmark": name, "clip": index, "video_id": f"scene_{index:04d}"}
        answers = zip(questions, ask_about(model, processor, video, questions), strict=True)
        yield [
            {**about, "question_id": f"{index:04d}-{question.kind}", "group": question.kind, **answer}
            for question, answer in answers
        ]
