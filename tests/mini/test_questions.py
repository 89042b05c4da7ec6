"""The questions: one right answer, four options, and nothing to gain for a reader who does not see the clip."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from tango.mini.benchmark import benchmark_clip, benchmark_questions, benchmark_seed
from tango.mini.questions import COLOR_NAMES, KINDS, ask, ask_all, is_right
from tango.mini.scenes import QUADRANTS, draw_clip, render_frame
from tango.mini.shapes import LETTERS, PATTERNS
from tango.report.benchmarks import OWN

QUESTIONS = [question for i in range(600) for question in benchmark_clip(i)[1]]
BY_KIND = {kind: [q for q in QUESTIONS if q.kind == kind] for kind in KINDS}


def test_options_are_four_and_hold_the_answer():
    for question in QUESTIONS:
        assert len(set(question.options)) == len(question.options) == 4
        assert question.answer in question.options


def test_the_same_clip_gets_the_same_questions():
    assert benchmark_clip(7)[1] == benchmark_clip(7)[1]


def test_every_kind_is_asked_often():
    assert min(map(len, BY_KIND.values())) > 400


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_balanced(kind):
    asked = BY_KIND[kind]
    answers, options = Counter(q.answer for q in asked), Counter(o for q in asked for o in q.options)
    places = Counter(q.options.index(q.answer) for q in asked)
    for counts, classes in ((answers, len(options)), (places, 4)):
        expected, deviation = len(asked) / classes, np.sqrt(len(asked) / classes)
        assert len(counts) == classes
        assert max(abs(n - expected) for n in counts.values()) < 4 * deviation


def test_guessing_the_likeliest_answer_of_each_text_is_right_one_time_in_four():
    """Learned on half of the clips, tried on the others: for each text, the option that was right most often."""
    half = len(QUESTIONS) // 2
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for question in QUESTIONS[:half]:
        seen[question.text][question.answer] += 1
    guesses = [max(q.options, key=lambda o: seen[q.text][o]) == q.answer for q in QUESTIONS[half:]]
    assert 0.21 < np.mean(guesses) < 0.29


def test_answers_follow_from_the_pixels():
    for i in range(12):
        clip, questions = benchmark_clip(i)
        owners = [render_frame(clip, k)[1] for k in range(clip.num_frames)]
        said = {q.kind: q for q in questions}
        numbers = sorted({int(n) for owner in owners for n in np.unique(owner) if 0 < n < 100})
        assert said["count"].answer == str(len(numbers))
        first = next(n for owner in owners for n in np.unique(owner) if 0 < n < 100)
        last = next(n for owner in owners[::-1] for n in np.unique(owner) if 0 < n < 100)
        assert said["first"].answer == COLOR_NAMES[clip.things[first - 1].color]
        assert said["last"].answer == COLOR_NAMES[clip.things[last - 1].color]
        assert said["letter"].answer == LETTERS[clip.captions[0].letter]
        thing = next(t for t in clip.things if PATTERNS[t.pattern] == said["color"].text.split()[-1])
        assert said["color"].answer == COLOR_NAMES[thing.color]
        thing = next(t for t in clip.things if COLOR_NAMES[t.color] == said["pattern"].text.split()[-1])
        assert said["pattern"].answer == PATTERNS[thing.pattern]
        for kind, at in (("where", 0), ("start", 0), ("end", 1)):
            if kind in said:
                thing = next(t for t in clip.things if COLOR_NAMES[t.color] == said[kind].text.split()[-1])
                assert (thing.direction is None) == (kind == "where")
                assert said[kind].answer == QUADRANTS[thing.quadrants[at]]


def test_what_a_clip_does_not_show_is_not_asked():
    rng = np.random.default_rng(0)
    clips = [draw_clip(benchmark_seed(i)) for i in range(100)]
    still = next(c for c in clips if all(t.direction is None for t in c.things))
    moving = next(c for c in clips if all(t.direction is not None for t in c.things))
    assert {q.kind for q in ask_all(still, rng)} == set(KINDS) - {"start", "end", "motion"}
    assert ask(moving, "where", rng) is None


def test_the_report_knows_how_many_questions_there_are():
    assert {own.num_questions for own in OWN if own.name.startswith("TangoMini")} == {
        len(list(benchmark_questions(200)))
    }


@pytest.mark.parametrize(("text", "expected"), [("Red.", True), (" red", True), ("red blue", False), ("", False)])
def test_an_answer_is_one_word(text, expected):
    assert is_right(text, "red") is expected
