"""tango.report.tables and render: whole tables from result folders, by hand and as they are printed."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tango.commands.results import read, resolve
from tango.errors import TangoError, UnknownNameError
from tango.evaluation import MethodConfig
from tango.report.experiments import Experiment, read_experiment
from tango.report.intervals import accuracies, average, paired_difference
from tango.report.readers import read_results
from tango.report.render import RENDERERS
from tango.report.tables import Cell, Table, build
from tests.report.folders import everything, unnamed_clips, verdicts, write_lines, write_run
from tests.report.test_paper import EXPERIMENTS

GOLDEN = Path(__file__).parents[1] / "data" / "results" / "golden"
FULL = "111111101101;11111100;111010;1111011"
TANGO = "111110101100;11110000;101010;1111000"
PART = {"method": "tango", "retention_ratio": 0.1, "alpha": 1, "context_ratio": 0, "rope": "none"}

pytestmark = pytest.mark.usefixtures("miniature")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """All tokens and Tango on everything; top-k on fewer questions; HoliTom failed on one benchmark."""
    write_run(tmp_path, {"method": "none"}, everything(FULL), tokens=(6272.0, 6272.0))
    write_run(tmp_path, {"method": "tango", "retention_ratio": 0.1}, everything(TANGO))
    write_run(tmp_path, PART, everything("1110;1100;1010;11"), limit=4)
    holitom = dict(list(everything(TANGO).items())[:3])
    write_run(tmp_path, {"method": "holitom"}, holitom, errors={"MLVU_MCQ": "no memory"})
    return tmp_path


def table(number: int | str, *paths: Path, **options: Any) -> Table:
    return build(read_experiment(EXPERIMENTS, number), read(argparse.Namespace(results=paths)), resolve, **options)


def cells(made: Table, name: str) -> dict[str, Cell]:
    (found,) = (row.cells for row in made.rows if row.row.name == name and row.row.section in (None, "10 %", "all"))
    return found


def value(cell: Cell) -> float:
    assert cell.ours is not None
    return cell.ours.value


class TestCells:
    def test_accuracies(self, outputs: Path) -> None:
        found = cells(table(1, outputs), "tango")
        expected = {
            "Video-MME": 100 * 8 / 12,
            "Video-MME/short": 100 * 4 / 6,  # clips 0 and 3
            "Video-MME/medium": 100 * 2 / 3,
            "Video-MME/long": 100 * 2 / 3,
            "MVBench": 50.0,
            "LongVideoBench": 50.0,
            "MLVU": (100 * 4 / 5 + 0) / 2,  # the mean over its tasks
        }
        for name, percent in expected.items():
            assert value(found[name]) == pytest.approx(percent)
        mean = sum(expected[name] for name in ("Video-MME", "MVBench", "LongVideoBench", "MLVU")) / 4
        assert value(found["average"]) == pytest.approx(mean)
        full = (100 * 10 / 12 + 75 + 100 * 4 / 6 + (100 * 4 / 5 + 100) / 2) / 4
        assert value(found["performance"]) == pytest.approx(100 * mean / full)
        assert value(cells(table(1, outputs), "full")["performance"]) == 100
        assert (found["average"].published, found["average"].difference) == (58.4, pytest.approx(mean - 58.4))

    def test_intervals_and_counts(self, outputs: Path) -> None:
        runs = {run.benchmark.name: run for run in read_results([outputs / "LLaVA-OneVision-7B-tango-r0.1"]).runs}
        found = cells(table(1, outputs), "tango")
        for name, run in runs.items():
            ours, expected = found[name].ours, accuracies(run.questions, run.benchmark)[None]
            assert ours is not None
            assert (ours.interval(), ours.num_questions) == (expected.interval(), len(run.questions))
        mean, ours = average([accuracies(r.questions, r.benchmark)[None] for r in runs.values()]), found["average"].ours
        assert ours is not None
        assert ours.interval() == pytest.approx(mean.interval())
        assert ours.num_questions == 12 + 8 + 6 + 7
        other = cells(table(1, outputs, seed=1), "tango")["average"].ours
        assert other is not None
        assert other.interval() != ours.interval()

    def test_what_was_not_run_is_empty(self, outputs: Path) -> None:
        made = table(1, outputs)
        assert {cell.ours for cell in cells(made, "dart").values()} == {None}
        holitom = cells(made, "holitom")
        assert value(holitom["MVBench"]) == 50
        assert [holitom[name].ours for name in ("MLVU", "average", "performance")] == [None] * 3
        assert any("holitom" in note and "MLVU failed: no memory" in note for note in made.notes)

    def test_parts_are_marked_and_compared_with_nothing(self, outputs: Path) -> None:
        made = table(3, outputs)
        top_k = next(row.cells for row in made.rows if row.row.name == "top-k")
        assert all(cell.partial for cell in top_k.values() if cell.ours)
        assert {cell.difference for cell in top_k.values()} == {None}
        assert top_k["performance"].ours is None  # all tokens were asked more questions
        assert value(top_k["Video-MME"]) == 75
        assert not cells(made, "tango")["Video-MME"].partial
        (note,) = (note for note in made.notes if note.startswith("partial, marked *"))
        assert "-limit4: Video-MME 4/12, " in note

    def test_runs_of_one_part_share_a_note(self, tmp_path: Path) -> None:
        for ratio in (0.1, 0.15):
            write_run(tmp_path, {"method": "tango", "retention_ratio": ratio}, {"MVBench": verdicts("1100")})
        write_run(tmp_path, {"method": "holitom", "retention_ratio": 0.1}, {"MVBench": verdicts("110")})
        one, two = sorted(note for note in table(1, tmp_path).notes if note.startswith("partial, marked *: "))
        assert one.endswith("holitom-r0.1: MVBench 3/8 questions")
        assert two == "partial, marked *: 2 runs: MVBench 4/8 questions"

    def test_a_part_of_one_benchmark_marks_the_average(self, tmp_path: Path) -> None:
        answers = everything(TANGO) | {"MVBench": verdicts("1100")}
        write_run(tmp_path, {"method": "tango", "retention_ratio": 0.1}, answers)
        found = cells(table(1, tmp_path), "tango")
        assert [found[name].partial for name in ("Video-MME", "MVBench", "average")] == [False, True, True]

    def test_whole_runs_are_taken_before_parts(self, outputs: Path) -> None:
        write_run(outputs / "later", {"method": "tango", "retention_ratio": 0.1}, everything("0;0;0;0"), date="2027")
        made = table(1, outputs)
        assert value(cells(made, "tango")["MVBench"]) == 50
        assert any("later" in note and "is left out" in note and note.endswith("is whole") for note in made.notes)

    def test_no_right_answer_at_all(self, tmp_path: Path) -> None:
        nothing = everything(";".join("0" * len(part) for part in FULL.split(";")))
        write_run(tmp_path, {"method": "none"}, nothing)
        found = cells(table(1, tmp_path), "full")
        assert value(found["average"]) == 0
        assert found["performance"].ours is None

    def test_groups_that_nothing_was_asked_in(self, tmp_path: Path) -> None:
        write_run(tmp_path, {"method": "none"}, {"Video-MME": verdicts("101")})  # of the first clip, short
        found = cells(table(1, tmp_path), "full")
        assert value(found["Video-MME/short"]) == pytest.approx(200 / 3)
        assert found["Video-MME/long"].ours is None
        assert found["Video-MME"].ours is not None
        assert found["Video-MME"].ours.interval() is None  # one clip


class TestWhichRuns:
    def test_recorded_runs_of_the_toolkit_find_their_rows(self) -> None:
        """Also where a method has got another option since, with a default: Tango's `kernels`."""
        made = table(1, GOLDEN.parent / "vlmevalkit", against="full")
        for name, label in (("full", "none"), ("tango", "tango-r0.1")):
            folder = GOLDEN.parent / "vlmevalkit" / f"LLaVA-OneVision-7B-{label}"
            recorded = json.loads((folder / "tango_summary.json").read_text())["datasets"]
            for key, column in (("MVBench", "MVBench"), ("Video-MME", "Video-MME"), ("MLVU_MCQ", "MLVU")):
                if f"{key}_32frame" in recorded:
                    percent = "mean_of_groups_percent" if column == "MLVU" else "accuracy_percent"
                    cell = cells(made, name)[column]
                    assert value(cell) == pytest.approx(recorded[f"{key}_32frame"][percent])
                    assert (cell.against is None) == (name == "full")
        assert cells(made, "tango")["performance"].ours is not None
        # Recorded when the row read Tango's saliency.
        note = "is no run of the row 'holitom 0.1': saliency p-attn, not attn"
        assert any(text.endswith(note) for text in made.notes)
        made = table("same_signal", GOLDEN.parent / "vlmevalkit")
        (found,) = [row.cells for row in made.rows if (row.row.name, row.row.section) == ("holitom", "p-attn")]
        folder = GOLDEN.parent / "vlmevalkit" / "LLaVA-OneVision-7B-holitom-r0.1"
        recorded = json.loads((folder / "tango_summary.json").read_text())["datasets"]["Video-MME_32frame"]
        assert value(found["Video-MME"]) == pytest.approx(recorded["accuracy_percent"])

    def test_options_are_part_of_a_row(self, outputs: Path) -> None:
        made = table(4, outputs)
        run = [row.row.name for row in made.rows if row.cells["MLVU"].ours]
        assert run == ["full", "1e4/1e3"]  # the defaults; others have other bases
        assert any("in no row of this table" in note and "holitom" in note for note in made.notes)

    @pytest.mark.parametrize(
        ("settings", "note"),
        [
            ({"method": "holitom", "saliency": "p-attn"},
             "is no run of the row 'holitom 0.1': saliency p-attn, not attn"),
            ({"method": "tango", "positions": "kept"},
             "is no run of the row 'tango 0.1': positions kept, not the model's own"),
            ({"method": "fastvid", "positions": "contiguous"},
             "is no run of the row 'fastvid 0.1': positions contiguous, not kept"),
            ({"method": "tango", "positions": "kept", "saliency": "attn"}, None),
            ({"method": "tango", "exact_budget": True}, None),
        ],
    )  # fmt: skip
    def test_a_run_that_differs_in_saliency_or_positions_alone_is_told_apart(
        self, outputs: Path, settings: dict[str, Any], note: str | None
    ) -> None:
        folder = write_run(outputs / "other", settings, everything(FULL))
        made = table(1, outputs)
        assert value(cells(made, "tango")["MVBench"]) == value(cells(made, "holitom")["MVBench"]) == 50
        assert any(f"{folder}" in text for text in made.notes if text.startswith("in no row of this table"))
        assert [text for text in made.notes if "is no run of" in text] == ([] if note is None else [f"{folder} {note}"])

    def test_another_number_of_frames_is_another_experiment(self, tmp_path: Path) -> None:
        settings = {"method": "tango", "retention_ratio": 0.1}
        folder = write_run(tmp_path, settings, everything(TANGO), num_frames=8)
        made = table(1, tmp_path)
        assert {cell.ours for cell in cells(made, "tango").values()} == {None}
        assert f"{folder} (MVBench) is left out: it has 8 frames, the paper 32" in made.notes
        mini = write_run(tmp_path / "mini", settings, everything(TANGO), model="tango-mini", num_frames=8)
        assert value(cells(table(1, mini, model="tango-mini"), "tango")["MVBench"]) == 50  # the paper has none of it

    def test_results_of_both_toolkits_fill_one_table(self, outputs: Path) -> None:
        lines = unnamed_clips("mvbench_action_count", verdicts("11111000"))
        write_lines(outputs / "lmms" / "now_records.jsonl", {"method": "dart", "retention_ratio": 0.1}, lines)
        made = table(1, outputs)
        assert value(cells(made, "dart")["MVBench"]) == 62.5
        assert value(cells(made, "tango")["MVBench"]) == 50
        assert any("which clip" in note and "MVBench" in note for note in made.notes)

    def test_another_model_fills_the_rows_by_its_name_alone(self, tmp_path: Path) -> None:
        for settings in ({"method": "none"}, {"method": "tango", "retention_ratio": 0.2}):
            write_run(tmp_path, settings, everything(FULL), model="tango-mini")
        assert all(not cell.ours for row in table(1, tmp_path).rows for cell in row.cells.values())
        made = table(1, tmp_path, model="tango-mini")
        found = next(row.cells for row in made.rows if row.row.section == "20 %" and row.row.name == "tango")
        assert value(found["average"]) > 0
        assert found["average"].difference is None  # accuracies of two models have nothing to do with each other
        assert found["performance"].difference == pytest.approx(100 - 99.7)

    def test_other_benchmarks(self, tmp_path: Path) -> None:
        line = {"model": "tango-mini", "method": MethodConfig().to_dict(), "benchmark": "TangoMini", "group": "shape"}
        lines = [{**line, "question_id": i, "video_id": i, "correct": True} for i in range(2)]
        path = tmp_path / "mini-records.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        experiment = read_experiment(EXPERIMENTS, 1).on(["TangoMini", "TangoMini/shape"])
        assert experiment.columns == ("TangoMini", "TangoMini/shape", "performance")
        made = build(experiment, read_results([path]), resolve, model="tango-mini")
        assert {name: value(cell) for name, cell in cells(made, "full").items()} == dict.fromkeys(
            experiment.columns, 100
        )
        assert cells(made, "full")["TangoMini"].published is None

    def test_one_of_the_papers_models(self) -> None:
        experiment: Experiment = read_experiment(EXPERIMENTS, 2)
        made = build(experiment, read_results([GOLDEN.parent]), resolve, model="qwen2.5-vl-7b")
        assert len([row for row in made.rows if row.row.published]) == 4


def sets(folder: Path, settings: dict[str, Any], name: str) -> Path:
    """One run of a benchmark under a name that a toolkit has for a set of it."""
    lines = [{"benchmark": name, "question_id": i, "video_id": i, "correct": i > 0} for i in range(4)]
    path = folder / name / f"{settings['method']}-records.jsonl"
    path.parent.mkdir(exist_ok=True, parents=True)
    return write_lines(path, settings, lines)


FULL_ROW, TANGO_ROW = {"method": "none"}, {"method": "tango", "retention_ratio": 0.1}


class TestSets:
    @pytest.mark.parametrize(
        ("one", "other", "names"),
        [
            ("mlvu_dev", "mlvu_test", ("MLVU", "MLVU test")),
            ("Video-MME_32frame", "Video-MME_32frame_subs", ("Video-MME", "Video-MME with subtitles")),
            ("videomme", "videomme_w_subtitle", ("Video-MME", "Video-MME with subtitles")),
            ("longvideobench_val_v", "longvideobench_val_i", ("LongVideoBench", "LongVideoBench with subtitles")),
        ],
    )
    def test_rows_of_two_sets_are_refused_by_both_names(
        self, tmp_path: Path, one: str, other: str, names: tuple[str, str]
    ) -> None:
        first, second = sets(tmp_path, FULL_ROW, one), sets(tmp_path, TANGO_ROW, other)
        expected = f"two sets of questions: {names[0]} of {first} and {names[1]} of {second}; run all rows on one"
        with pytest.raises(TangoError, match=re.escape(expected)):
            table(1, tmp_path)
        with pytest.raises(TangoError, match=re.escape(f"{names[0]} and {names[1]} are two sets of questions")):
            read_experiment(EXPERIMENTS, 1).on(names)
        made = build(read_experiment(EXPERIMENTS, 1).on(names[1:]), read_results([tmp_path]), resolve)
        assert value(cells(made, "tango")[names[1]]) == 75
        assert cells(made, "full")[names[1]].ours is None
        assert cells(made, "tango")["performance"].ours is None  # all tokens were asked another set

    def test_another_set_alone_fills_nothing_and_is_named(self, tmp_path: Path) -> None:
        path = sets(tmp_path, TANGO_ROW, "mlvu_test")
        made = table(1, tmp_path)
        assert {cell.ours for cell in cells(made, "tango").values()} == {None}
        assert f'{path} is of MLVU test, another set than MLVU: to see it, --benchmarks "MLVU test"' in made.notes

    def test_both_sets_of_every_row_are_not_mixed(self, tmp_path: Path) -> None:
        for settings in (FULL_ROW, TANGO_ROW):
            for name in ("MLVU_MCQ", "mlvu_test"):
                sets(tmp_path, settings, name)
        assert value(cells(table(1, tmp_path), "tango")["MLVU"]) == 75


class TestKept:
    def test_the_share_is_that_of_the_records(self, tmp_path: Path) -> None:
        write_run(tmp_path, FULL_ROW, everything(FULL), tokens=(6272.0, 6272.0))
        write_run(tmp_path, TANGO_ROW, everything(TANGO), tokens=(6272.0, 501.76))
        write_run(tmp_path, {"method": "uniform"}, everything(TANGO), tokens=(6272.0, None))
        made = {row.row.name: row for row in table(1, tmp_path).rows if row.row.section in (None, "10 %")}
        assert (made["full"].nominal, made["full"].kept) == (100, 100)
        assert (made["tango"].nominal, made["tango"].kept) == (10, pytest.approx(8.0))
        assert (made["uniform"].nominal, made["uniform"].kept) == (10, None)  # never the ratio in its place
        assert made["dart"].kept is None
        lines = RENDERERS["markdown"](table(1, tmp_path)).splitlines()
        assert [line.split(" | ")[:4] for line in lines if line.startswith("| tango | 10 ")] == [
            ["| tango", "10", "8.0", "ours"]
        ]

    def test_it_is_the_mean_over_benchmarks(self, tmp_path: Path) -> None:
        shares = {"Video-MME": 0.06, "MVBench": 0.12}
        lines = [
            {"benchmark": name, "question_id": i, "video_id": i, "correct": True, "tokens_before": 100,
             "tokens_after": 100 * share}
            for name, share in shares.items() for i in range(3)
        ]  # fmt: skip
        write_lines(tmp_path / "records.jsonl", TANGO_ROW, lines)
        (row,) = [row for row in table(1, tmp_path).rows if row.row.name == "tango" and row.row.section == "10 %"]
        assert row.kept == pytest.approx(9.0)


class TestAgainst:
    def test_all_tokens_are_what_rows_are_compared_with_by_default(self, outputs: Path) -> None:
        made = table(1, outputs)
        assert made.against == "full"
        found = cells(made, "tango")["MVBench"].against
        assert found is not None
        assert found.value == -25
        assert cells(made, "full")["MVBench"].against is None
        assert "| minus full |" in RENDERERS["markdown"](made)

    def test_differences_are_paired(self, outputs: Path) -> None:
        made = table(1, outputs, against="tango")
        runs = {(r.source.name, r.benchmark.name): r for r in read_results([outputs]).runs}
        ours, theirs = (runs[f"LLaVA-OneVision-7B-{label}", "Video-MME"] for label in ("holitom-r0.1", "tango-r0.1"))
        expected = paired_difference(ours.questions, theirs.questions, ours.benchmark)
        for column, group in (("Video-MME", None), ("Video-MME/short", "short")):
            found = cells(made, "holitom")[column].against
            assert found is not None
            assert (found.value, found.interval()) == (expected[group].value, expected[group].interval())
        assert cells(made, "tango")["Video-MME"].against is None  # it is the reference
        assert cells(made, "full")["Video-MME"].against is None  # Tango at which ratio?
        assert cells(made, "dart")["Video-MME"].against is None

    def test_all_tokens_fit_every_ratio(self, outputs: Path) -> None:
        found = cells(table(1, outputs, against="full"), "tango")
        assert found["MVBench"].against is not None
        assert found["MVBench"].against.value == -25
        assert found["performance"].against is None
        assert found["average"].against is not None

    def test_parts_are_compared_on_what_both_were_asked(self, outputs: Path) -> None:
        made = table(3, outputs, against="tango")
        found = next(row.cells for row in made.rows if row.row.name == "top-k")["Video-MME"].against
        assert found is not None
        assert (found.num_questions, found.value) == (4, -25)

    def test_questions_of_two_toolkits_are_not_the_same(self, outputs: Path) -> None:
        lines = unnamed_clips("mvbench_action_count", verdicts("11111111"))
        write_lines(outputs / "lmms" / "now_records.jsonl", {"method": "dart", "retention_ratio": 0.1}, lines)
        made = table(1, outputs, against="tango")
        assert cells(made, "dart")["MVBench"].against is None
        assert any("no question in common" in note for note in made.notes)

    def test_a_row_that_is_not_there(self, outputs: Path) -> None:
        with pytest.raises(UnknownNameError, match="unknown row of Table 1 'top-k'"):
            table(1, outputs, against="top-k")


class TestRendering:
    @pytest.mark.parametrize("form", sorted(RENDERERS))
    @pytest.mark.parametrize("number", [1, 3])
    def test_golden(self, outputs: Path, form: str, number: int) -> None:
        made = table(number, outputs, against="tango")
        text = RENDERERS[form](made).replace(str(outputs), "OUTPUTS")
        path = GOLDEN / f"table{number}.{ {'markdown': 'md', 'csv': 'csv', 'latex': 'tex'}[form] }"
        assert text == path.read_text(encoding="utf-8")

    def test_a_table_of_nothing_has_the_papers_numbers_alone(self) -> None:
        made = table(2, GOLDEN.parent)
        rows = list(csv.DictReader(io.StringIO(RENDERERS["csv"](made))))
        assert len(rows) == len(made.rows) * 9
        assert len([row for row in rows if row["paper"]]) == 17 * 9
        assert {row["ours"] for row in rows} == {row["kept_percent"] for row in rows} == {""}
        lines = RENDERERS["markdown"](made).splitlines()
        ours = [line for line in lines if "| ours |" in line]
        assert len(ours) == len(made.rows)
        assert len([line for line in lines if "| paper |" in line]) == 17
        assert {line.split("| ours |")[1] for line in ours} == {" - |" + " - |" * 8}
        assert len([line for line in lines if line.startswith("| **LLaVA-Video-7B, 10 %** |")]) == 1

    def test_columns_of_markdown_are_even(self, outputs: Path) -> None:
        lines = [line for line in RENDERERS["markdown"](table(1, outputs)).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1

    def test_latex_escapes(self, outputs: Path) -> None:
        text = RENDERERS["latex"](table(1, outputs))
        assert "10 \\%" in text
        body = text[: text.index("\\bottomrule")]
        assert all(
            line.count(" & ") == 12 for line in body.splitlines() if line.endswith("\\\\") and "multi" not in line
        )
