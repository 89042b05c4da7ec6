"""Questions of time, place and order about a scene, each with one right answer among its options."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tango.lab.small.scenes import MOST_PARTS, SIDES, Scene
from tango.lab.small.sources import PICTURES, Sources
from tango.mini.questions import Question

KINDS = {
    "first": "which of two parts comes first",
    "direction": "whether the video is played forwards or backwards",
    "cut": "whether there is a cut",
    "cuts": "how many cuts there are",
    "when": "at which second the cut is",
    "picture": "which picture appears",
    "where": "at which side an object is",
}
_MOVES = 1.0  # least motion of every shot, where the direction is asked for


def ask_all(scene: Scene, sources: Sources) -> list[Question]:
    """One question of every kind that the scene allows; whoever sees nothing is right one time in two or four."""
    rng = np.random.default_rng((*scene.seed, 1 << 20))
    looks = [part.look for part in scene.parts if part.look != "plain"]
    found: list[Question] = []

    def ask(kind: str, text: str, answer: str, wrong: Sequence[str]) -> None:
        options = tuple(map(str, rng.permutation([answer, *rng.permutation(wrong)[:3]])))
        listed = f"{', '.join(options[:-1])} or {options[-1]}"
        found.append(
            Question(kind=kind, text=f"{text} Answer with one word: {listed}.", options=options, answer=answer)
        )

    def others(answer: str, every: Sequence[str]) -> list[str]:
        return [option for option in every if option != answer]

    if len(looks) == 2:
        named = " or the ".join(f"{look} part" for look in rng.permutation(looks))
        ask("first", f"Which comes first, the {named}?", looks[0], looks[1:])
    if all(sources.shots[part.shot].motion >= _MOVES for part in scene.parts):
        ways = ("forwards", "backwards")
        ask(
            "direction",
            "Is the video played forwards or backwards?",
            ways[scene.backwards],
            [ways[not scene.backwards]],
        )
    cuts = len(scene.cuts_s)
    if cuts < 2:
        ask("cut", "Is there a cut in the video?", ("no", "yes")[cuts], [("yes", "no")[cuts]])
    ask("cuts", "How many cuts are in the video?", str(cuts), others(str(cuts), [str(n) for n in range(MOST_PARTS)]))
    if cuts == 1:
        second = str(scene.cuts_s[0])
        seconds = [str(n) for n in range(1, scene.duration_s)]
        text = f"The video lasts {scene.duration_s} seconds. At which second is the cut?"
        ask("when", text, second, others(second, seconds))
    if scene.picture is not None:
        ask("picture", "Which picture appears in the middle?", scene.picture[0], others(scene.picture[0], PICTURES))
    if scene.things:
        thing = scene.things[0]
        ask("where", f"At which side is the {thing.color} {thing.shape}?", thing.side, others(thing.side, list(SIDES)))
    return found
