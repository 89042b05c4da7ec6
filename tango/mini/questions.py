"""The questions of the benchmark: ten kinds, each with one right answer among four options.

Answers are drawn such that whoever does not see the video is right one time in four. The word that says what to look
for comes last in a question, which helps a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tango.mini.scenes import COLORS, DIRECTIONS, QUADRANTS, Clip, Thing
from tango.mini.shapes import LETTERS, PATTERNS

COLOR_NAMES = tuple(COLORS)
COUNTS = ("2", "3", "4", "5")
KINDS = {
    "letter": "the letter in the caption",
    "color": "the colour of the object with a given pattern",
    "pattern": "the pattern of the object with a given colour",
    "where": "the quadrant of an object that stands still",
    "start": "the quadrant in which a moving object starts",
    "end": "the quadrant in which a moving object ends",
    "motion": "the direction in which an object moves",
    "first": "the colour of the object in the first scene",
    "last": "the colour of the object in the last scene",
    "count": "the number of objects",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one clip."""

    kind: str
    text: str
    options: tuple[str, ...]
    answer: str


def ask(clip: Clip, kind: str, rng: np.random.Generator) -> Question | None:
    """Draw a question of a kind about a clip; None if the clip has nothing to ask about (nothing moves, say)."""
    if kind in ("first", "last"):
        thing = clip.things[0 if kind == "first" else -1]
    else:
        moves = {"where": (False,), "start": (True,), "end": (True,), "motion": (True,)}.get(kind, (False, True))
        candidates = [t for t in clip.things if (t.direction is not None) in moves]
        if not candidates:
            return None
        thing = candidates[rng.integers(len(candidates))]
    text, answer, likely, every = _phrase(clip, kind, thing)
    options = _options(rng, answer, likely, every)
    return Question(kind=kind, text=text, options=options, answer=answer)


def ask_all(clip: Clip, rng: np.random.Generator) -> list[Question]:
    """One question of every kind that the clip allows."""
    return [question for kind in KINDS if (question := ask(clip, kind, rng)) is not None]


def is_right(text: str, answer: str) -> bool:
    """Whether a model's text is the answer, without regard to case and surrounding punctuation.

    Example:
        >>> is_right("Cyan.", "cyan")
        True
    """
    return text.strip(" .,:;!?").lower() == answer.lower()


def _phrase(clip: Clip, kind: str, thing: Thing) -> tuple[str, str, Sequence[str], Sequence[str]]:
    """Text, answer, wrong answers that other things in the clip suggest, and all answers of this kind."""
    colors = [COLOR_NAMES[t.color] for t in clip.things]
    patterns = [PATTERNS[t.pattern] for t in clip.things]
    color, pattern = COLOR_NAMES[thing.color], PATTERNS[thing.pattern]
    first, last = (QUADRANTS[q] for q in thing.quadrants)
    way = tuple(DIRECTIONS)[thing.direction or 0]
    return {
        "letter": ("what is the letter", LETTERS[clip.captions[0].letter], (), LETTERS),
        "color": (f"what color is {pattern}", color, colors, COLOR_NAMES),
        "pattern": (f"what pattern is {color}", pattern, patterns, PATTERNS),
        "where": (f"where is {color}", first, (), QUADRANTS),
        "start": (f"where starts {color}", first, (), QUADRANTS),
        "end": (f"where ends {color}", last, (), QUADRANTS),
        "motion": (f"which way moves {color}", way, (), tuple(DIRECTIONS)),
        "first": ("which color is first", color, colors, COLOR_NAMES),
        "last": ("which color is last", color, colors, COLOR_NAMES),
        "count": ("how many objects", str(len(clip.things)), (), COUNTS),
    }[kind]


def _options(rng: np.random.Generator, answer: str, likely: Sequence[str], every: Sequence[str]) -> tuple[str, ...]:
    """The answer and three wrong ones in random order; wrong answers from the clip are taken first."""
    wrong = [str(w) for w in rng.permutation([w for w in likely if w != answer])]
    wrong += [str(w) for w in rng.permutation([w for w in every if w != answer and w not in wrong])]
    return tuple(str(w) for w in rng.permutation([answer, *wrong[:3]]))
