"""The scorecard in miniature: every check passes on sound work, and says so where a lie is planted."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from tango import cli
from tango.errors import OptionError, TangoError
from tango.evaluation import Question
from tango.lab.reliability import answers, command, corpus, files, journal_key, kills, probes
from tango.lab.reliability.files import Reading, verdict
from tango.lab.reliability.workers import Bench, Outcome, Row, alone, counted, run_all
from tango.video.reading import read_video

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reliability")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path, processes=1, limit_s=120)


def refuse() -> None:
    raise OptionError("no")


def test_processes_that_hang_or_die_are_seen(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, processes=1, limit_s=60)
    jobs = [partial(int, "7"), refuse, partial(int, "x"), partial(signal.raise_signal, 11), partial(int, "8")]
    outcomes = run_all(jobs, bench)
    assert [o.kind for o in outcomes] == ["ok", "refused", "crash", "signal", "ok"]
    assert (outcomes[0].value, outcomes[4].value) == (7, 8)
    assert "OptionError: no" in outcomes[1].message
    assert "-11" in outcomes[3].message
    assert alone(partial(time.sleep, 600), Bench(folder=tmp_path, limit_s=0.5)).kind == "hang"


def test_nothing_tried_is_no_success() -> None:
    assert not counted("R1", "x", 0, []).passed
    assert counted("R1", "x", 3, []).passed
    assert not counted("R1", "x", 3, ["a"]).passed


class TestFiles:
    NAMES = ("h264.mp4", "edit_list.mp4", "turned_90.mp4", "uneven.mkv")

    def test_sound_files_are_exact(self, folder: Path) -> None:
        for name in self.NAMES:
            assert files.compare_exactly(corpus.make(name, folder), name) == ""

    def test_a_reader_that_lies_is_caught(self, folder: Path, monkeypatch: Patch) -> None:
        def one_off(path: Path, **options: Any) -> Any:
            video = read_video(path, **options)
            video.frames[-1] += 1
            return video

        monkeypatch.setattr(files, "read_video", one_off)
        path = corpus.make("h264.mp4", folder)
        assert "other pixels at frames 0" in files.compare_exactly(path, "h264.mp4")
        corpus_entry = corpus.CORPUS["h264.mp4"]
        monkeypatch.setitem(corpus.CORPUS, "h264.mp4", corpus.Entry(**{**vars_of(corpus_entry), "num_frames": 41}))
        assert files.compare_exactly(path, "h264.mp4") == "FFmpeg shows 40 frames of 41"

    def test_what_cannot_be_made_says_so(self, folder: Path, monkeypatch: Patch) -> None:
        monkeypatch.setitem(corpus.CORPUS, "none.mp4", corpus.Entry(codec="no_such_codec"))
        with pytest.raises(LookupError, match=r"none.mp4"):
            corpus.make("none.mp4", folder)
        assert len(corpus.CORPUS) >= 60

    def test_bad_files_are_refused(self, folder: Path) -> None:
        bad = files.write_bad_files(folder, corpus.make("faststart.mp4", folder))
        assert len(bad) >= 12
        for path in bad.values():
            with pytest.raises(TangoError):
                files.read(path, 8, "pyav")

    def test_damage_is_the_same_for_the_same_seed(self, folder: Path) -> None:
        import random

        data = corpus.make("h264.mp4", folder).read_bytes()
        for kind in ("cut", "hole", "flips", "swap"):
            damaged = [files.damage(data, kind, random.Random(3)) for _ in range(2)]
            assert damaged[0] == damaged[1] != data
            assert damaged[0][:64] == data[:64]

    def test_verdicts(self) -> None:
        truth = Reading(3, ("a", "b", "c"))
        clean, complained = Reading(2, ("a", "b")), Reading(2, ("a", "b"), ("h264: error",))

        def of(count: int, frames: str, *warned: str) -> Outcome:
            return Outcome("ok", (count, tuple(frames), ()), "", warned)

        assert verdict(Outcome("refused"), truth, complained) == "refused"
        assert verdict(of(3, "abc"), truth, complained) == "whole"
        assert verdict(of(2, "ab"), truth, complained) == "silent"
        assert verdict(of(2, "ab", "2 of 3"), truth, complained) == "warned"
        assert verdict(of(2, "aab", "2 of 3"), truth, complained) == "warned"  # asked for 3: one is repeated
        assert verdict(of(2, "aa", "2 of 3"), truth, complained) == "not as FFmpeg"
        assert verdict(of(3, "abx"), truth, Reading(3, ("a", "b", "x"), ("error",))) == "silent"
        assert verdict(of(3, "abx"), truth, Reading(3, ("a", "b", "x"))) == "unseen"
        assert verdict(of(2, "ab"), truth, clean) == "shorter"
        assert verdict(of(1, "a"), truth, clean) == "silent"
        assert verdict(of(2, "ab"), truth, None) == "silent"
        assert verdict(of(3, "aby"), truth, Reading(3, ("a", "b", "x"))) == "silent"
        assert verdict(of(3, "aby"), truth, Reading(3, ("a", "b", "x")), own_decoder=True) == "unseen"
        assert verdict(of(2, "ab"), truth, Reading(3, ("a", "b", "x")), own_decoder=True) == "silent"
        assert verdict(of(3, "aby"), truth, Reading(3, ("a", "b", "x"), ("error",)), own_decoder=True) == "silent"

    def test_ffmpegs_complaints_are_heard(self, folder: Path) -> None:
        path = corpus.make("h264.mkv", folder)
        assert files.sequential(path, "h264.mkv").complaints == ()
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 4096] = bytes(4096)
        (folder / "hole.mkv").write_bytes(data)
        assert files.sequential(folder / "hole.mkv", "h264.mkv").complaints


def vars_of(entry: corpus.Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__dataclass_fields__}


class TestKills:
    def test_a_killed_evaluation_resumes_and_a_changed_answer_is_caught(self, bench: Bench) -> None:
        questions = kills.questions_of(bench.folder / "clips", 8)
        expected = kills.finish(questions, bench.folder / "whole", bench)
        assert len(expected.splitlines()) == 9
        run = bench.folder / "killed"
        process = kills.start(kills._evaluate_alone, questions, run, 0, 1)
        assert kills.kill_after([process], run, 2, 0.0)
        assert 2 <= len(kills.answered(run)) < 8
        assert kills.judge(run, questions, expected, bench, "kill") == ""
        file = run / "journal" / "answers-00000.jsonl"
        first, *rest = file.read_text().splitlines(keepends=True)
        file.write_text(json.dumps({**json.loads(first), "text": "blue sky"}) + "\n" + "".join(rest))
        assert "1 records differ" in kills.judge(run, questions, expected, bench, "kill").replace(
            "2 records", "1 records"
        )
        file.write_text("".join([first, first, *rest]))
        assert "1 answers computed twice" in kills.judge(run, questions, expected, bench, "kill")

    def test_which_errors_name_the_file(self) -> None:
        assert kills.names_file(Outcome("crash", message="OSError: [Errno 27] File too large: 'a.jsonl'"), "a.jsonl")
        assert not kills.names_file(Outcome("crash", message="OSError: [Errno 27] File too large"), "a.jsonl")
        assert not kills.names_file(Outcome("ok"), "a.jsonl")


class TestKey:
    def test_every_option_has_another_value(self) -> None:
        tried = journal_key.changes()
        assert len(tried) >= 12 + len(dataclasses.fields(journal_key.pruner_class("tango")))
        assert all(change for change in tried.values())

    def test_a_key_that_leaves_something_out_is_caught(self, tmp_path: Path, monkeypatch: Patch) -> None:
        for clip in (0, 1):
            journal_key.mini.clip_file(tmp_path, clip)
        change = journal_key.CHANGES["prompt"]
        assert journal_key.try_change(tmp_path, 0, change) == ["computed", "cached", "computed"]
        monkeypatch.setattr(Question, "key", "always the same")
        assert journal_key.try_change(tmp_path, 1, change) == ["computed", "cached", "cached"]
        assert journal_key.ask(tmp_path, tmp_path / "journal_0", journal_key.CHANGES["method"]) == "refused"


class TestAnswers:
    def test_sound_work(self) -> None:
        faults, largest = answers.repeat("tango-mini", "tango", 2)
        assert faults == []
        assert largest < 1e-3
        assert answers.batches("tango-mini", 3, "tango") == ""
        assert answers.two_videos("qwen2.5-vl-tiny", "tango") == ""
        assert answers.without_video("tango-mini", "tango") == ""
        assert answers.keeps_all("tango-mini", "uniform") == answers.constant("tango-mini", "tango") == ""

    def test_rows_that_change_places_are_caught(self, monkeypatch: Patch) -> None:
        stock = answers.collate
        monkeypatch.setattr(answers, "collate", lambda rows, pad: stock(rows[::-1], pad))
        assert answers.batches("tango-mini", 3, "tango") == "other tokens kept than alone"

    def test_random_choices_are_caught(self, monkeypatch: Patch) -> None:
        def drop_one(self: Any, tokens: Any) -> Any:
            pruned = self.pruner(tokens)
            self.kept.append(tuple(torch.randperm(len(pruned.indices)).tolist()))
            return pruned

        monkeypatch.setattr(answers._Spy, "__call__", drop_one)
        faults, _ = answers.repeat("tango-mini", "uniform", 2)
        assert len(faults) >= 6

    def test_an_answer_from_nan_is_a_fault_and_a_typed_error_none(self) -> None:
        jobs = [partial(answers.not_a_number, "m", "uniform"), partial(answers.not_a_number, "m", "tango")]
        row = answers.row_of("NaN", jobs, [Outcome("ok", "answered at ratio 0.3"), Outcome("refused")])
        assert not row.passed
        assert row.faults == ("m, uniform: answered at ratio 0.3",)
        assert not answers.row_of("x", jobs, [Outcome("crash", message="TypeError"), Outcome("refused")]).passed
        assert answers.row_of("x", jobs, [Outcome("ok", ""), Outcome("refused")]).passed


class TestProbes:
    def test_connections_are_seen(self) -> None:
        with probes.listening() as (port, seen):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET /a\r\n")
            deadline = time.monotonic() + 20
            while not seen and time.monotonic() < deadline:
                time.sleep(0.05)
        assert seen == ["GET /a\r"]

    def test_alias_really_leads_to_the_other_file(self, folder: Path) -> None:
        clip, other = corpus.make("h264.mov", folder), corpus.make("mpeg4.mp4", folder)
        path = folder / "alias.mov"
        path.write_bytes(probes.with_alias(clip.read_bytes(), str(other)))
        av.logging.set_level(av.logging.VERBOSE)
        try:
            with av.logging.Capture() as log, av.open(str(path)):
                pass
        finally:
            av.logging.set_level(None)
        assert any("external track" in said and str(other) in said for _, _, said in log)

    def test_a_file_that_is_read_and_memory_that_is_taken_are_caught(self, folder: Path) -> None:
        clip = str(corpus.make("h264.mp4", folder))
        assert probes.take(clip, 2)[0] == "read"
        outcomes = {
            "read": Outcome("ok", (("read", []), 1.0)),
            "refused": Outcome("ok", (("refused", "no"), 1.0)),
            "crash": Outcome("ok", (("crash", "KeyError"), 1.0)),
            "dead": Outcome("signal", message="-9"),
        }
        assert [fault.partition(":")[0] for fault in probes.faults_of(outcomes)] == ["read", "crash", "dead"]
        assert len(probes.faults_of(outcomes, may_read=("read",))) == 2
        code = (  # in a process of its own: in this one, earlier tests have set the peak
            "from functools import partial; from tango.lab.reliability import probes\n"
            "from tests.lab.test_reliability import allocate; print(probes.peak(partial(allocate, 400)))"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
        (kind, size), grown = ast.literal_eval(done.stdout)
        assert (kind, size) == ("read", 400 << 20)
        assert grown > 300

    def test_what_is_no_video_is_refused_in_every_form(self, folder: Path) -> None:
        with probes.listening() as (port, seen):
            pointing = probes.pointing_files(folder, port, corpus.make("h264.mov", folder))
            for path in [*probes.addresses(port).values(), *map(str, pointing.values())]:
                assert probes.peak(partial(probes.take, path))[0][0] == "refused", path
        assert seen == []

    def test_a_command_that_succeeds_is_a_fault(self) -> None:
        assert probes.one_line(["--version"]).startswith("exit code 0")
        assert probes.one_line(["nonsense"]).startswith("exit code 2")  # with its usage, so in more than one line


def allocate(megabytes: int) -> tuple[str, int]:
    return "read", len(bytearray(b"x") * (megabytes << 20))


class TestCommand:
    @staticmethod
    def good(_bench: Bench) -> Iterator[Row]:
        yield counted("R1", "good", 3, [])

    @staticmethod
    def bad(_bench: Bench) -> Iterator[Row]:
        yield counted("R2", "bad", 3, ["clip 7"])
        raise KeyError("gone")

    @pytest.fixture(autouse=True)
    def _two_checks(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(command, "CHECKS", {"R1": ("tests.lab.test_reliability", "good", "x"), "R2": ("", "", "y")})
        functions = {"R1": self.good, "R2": self.bad}
        monkeypatch.setattr(command, "_check", lambda name: functions[name])

    def test_all_met(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "table.json"
        assert cli.main(["bench", "reliability", "--only", "R1", "--output", str(output)]) == 0
        assert "1 of 1 targets met" in capsys.readouterr().out
        report = json.loads(output.read_text())
        assert report["complete"]
        assert report["passed"]
        assert report["config"] == {"seed": 0, "full": False, "checks": ["R1"]}
        assert "| R1 | good | 0 faults | 0 faults | yes | 3 |" in output.with_suffix(".md").read_text()

    def test_a_missed_target_and_a_check_that_breaks_down(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["bench", "reliability"]) == 1
        said = capsys.readouterr().out
        assert "1 of 3 targets met" in said
        assert "KeyError" in said
        assert "R2 bad: clip 7" in said

    def test_what_was_done_is_kept(self, tmp_path: Path, monkeypatch: Patch) -> None:
        def interrupted(_bench: Bench) -> Iterator[Row]:
            raise KeyboardInterrupt
            yield

        monkeypatch.setattr(command, "_check", lambda name: self.good if name == "R1" else interrupted)
        output = tmp_path / "table.json"
        with pytest.raises(KeyboardInterrupt):
            cli.main(["bench", "reliability", "--output", str(output)])
        report = json.loads(output.read_text())
        assert len(report["rows"]) == 1
        assert not report["complete"]
        assert not report["passed"]
        assert "ENDED EARLY" in output.with_suffix(".md").read_text()

    def test_mistakes(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments, said in (
            (["--only", "R8"], "no check R8"),
            (["--corpus"], "--folder"),
            (["--processes", "0"], "1"),
        ):
            assert cli.main(["bench", "reliability", *arguments]) == 2
            assert said in capsys.readouterr().err


def test_script_has_help() -> None:
    assert os.access(Path(__file__).parents[2] / "scripts" / "reliability.sh", os.X_OK)
