"""`tango table`, `tango experiments` and scripts/table*.sh as a user meets them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tango.cli import main
from tango.report.paper import published
from tests.report.folders import FULL, MINIATURE, PRUNED, everything, five_runs, write_lines, write_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tango.report.benchmarks.BENCHMARKS", MINIATURE)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return five_runs(tmp_path / "outputs")


class TestTable:
    def test_markdown_goes_to_standard_output(self, outputs, capsys):
        assert main(["table", "1", "--results", str(outputs)]) == 0
        out = capsys.readouterr().out
        assert out.startswith("**Table 1: LLaVA-OneVision-7B, 32 frames**\n")
        assert "| tango | 10 | 10.2 | ours | 66.7 [" in out
        assert "| dart | 10 | - | ours | - | - |" in out
        assert "| minus full | -16.7 [" in out
        assert "\n- methods run with positions kept: fastvid; " in out
        assert "saliency attn: visionzip, holitom, flashvid; saliency p-attn: fastvid, tango; " in out

    def test_exact_budgets_are_rows_of_their_own(self, outputs, capsys):
        exact = {"method": "tango", "retention_ratio": 0.1, "exact_budget": True}
        write_run(outputs, exact, everything(FULL), tokens=(6272.0, 627.0))
        assert main(["table", "1", "--results", str(outputs)]) == 0
        assert "| tango | 10 | 10.2 | ours | 66.7 [" in capsys.readouterr().out
        assert main(["table", "1", "--results", str(outputs), "--exact-budget"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("**Table 1: LLaVA-OneVision-7B, 32 frames; with exact budgets**\n")
        assert "| tango | 10 | 10.0 | ours | 83.3 [" in out
        assert "with exact budgets: the paper's numbers, and those of the methods' own papers, are not" in out

    def test_the_same_signal(self, outputs, capsys):
        for saliency in ("attn", "p-attn"):
            write_run(outputs, {"method": "holitom", "saliency": saliency}, everything(PRUNED))
        assert main(["table", "same_signal", "--results", str(outputs)]) == 0
        out = capsys.readouterr().out
        assert out.startswith("**same_signal: Methods that read saliency, all with the same one")
        assert out.count("| holitom | 10 | 10.2 | ours | 66.7 [") == 2
        assert "| paper |" not in out
        assert main(["table", "1", "--results", str(outputs), "--saliency", "p-attn"]) == 0
        out = capsys.readouterr().out
        assert "32 frames; with saliency p-attn for all methods**" in out
        assert "- methods run with positions kept: fastvid; " in out
        assert "saliency attn: " not in out

    def test_two_sets_are_refused_by_their_names(self, tmp_path, capsys):
        for method, name in (("none", "mlvu_dev"), ("tango", "mlvu_test")):
            line = {"benchmark": name, "question_id": 0, "video_id": None, "correct": True}
            write_lines(tmp_path / f"{method}.records.jsonl", {"method": method}, [line])
        assert main(["table", "1", "--results", str(tmp_path)]) == 2
        assert "two sets of questions: MLVU of " in (err := capsys.readouterr().err)
        assert "and MLVU test of " in err
        assert main(["table", "1", "--results", str(tmp_path), "--benchmarks", "MLVU", "MLVU test"]) == 2
        assert "MLVU and MLVU test are two sets of questions" in capsys.readouterr().err
        figure = ["figure", "accuracy", "--results", str(tmp_path), "--output", str(tmp_path / "a.png")]
        assert main(figure) == 2
        assert "MLVU and MLVU test are two sets of questions" in capsys.readouterr().err

    def test_all_tables_as_files(self, outputs, tmp_path, capsys):
        folder = tmp_path / "new" / "tables"
        for _ in range(2):  # the second time over what is there
            assert (
                main(["table", "--all", "--results", str(outputs), "--format", "latex", "--output", str(folder)]) == 0
            )
        files = ["same_signal.tex", *(f"table{n}.tex" for n in (1, 2, 3, 4))]
        assert sorted(path.name for path in folder.iterdir()) == files
        assert str(folder / "table3.tex") in capsys.readouterr().out

    def test_csv_into_a_file(self, outputs, tmp_path):
        path = tmp_path / "table.csv"
        options = ["--format", "csv", "--against", "full", "--output", str(path)]
        assert main(["table", "1", "--results", str(outputs), *options]) == 0
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert len([row for row in rows if row["paper"]]) == 9 * len(published(1))
        (row,) = (r for r in rows if (r["method"], r["retention_ratio"], r["column"]) == ("tango", "0.1", "MVBench"))
        assert (row["ours"], row["paper"], row["difference"], row["against"]) == ("50.0", "55.4", "-5.4", "-25.0")
        assert float(row["low"]) <= 50 <= float(row["high"])

    def test_another_model_with_benchmarks_of_its_own(self, tmp_path, capsys):
        write_run(tmp_path, {"method": "none"}, {"MVBench": [True, False]}, model="tango-mini")
        options = ["--model", "tango-mini", "--benchmarks", "MVBench", "MVBench/Action Count"]
        assert main(["table", "2", "--results", str(tmp_path), *options]) == 0
        out = capsys.readouterr().out
        assert "| method | ratio | kept |  | MVBench | MVBench/Action Count | Perf. |" in out
        assert "| full | 100 | 10.2 | ours | 50.0* [" in out
        assert "ours is tango-mini, so only Perf. compares with the paper's" in out

    def test_results_that_fit_no_row_are_said(self, outputs, capsys):
        assert main(["table", "2", "--results", str(outputs)]) == 0
        captured = capsys.readouterr()
        assert "no result fits a row of Table 2" in captured.err
        assert "in no row of this table: " in captured.out

    def test_options_that_a_method_has_got_since_are_at_their_defaults(self, outputs, capsys):
        path = outputs / "LLaVA-OneVision-7B-tango-r0.1" / "run.json"
        path.write_text(path.read_text().replace('"rope": "seconds",', ""))
        assert main(["table", "1", "--results", str(outputs)]) == 0
        assert "| tango | 10 | 10.2 | ours | 66.7 [" in capsys.readouterr().out

    def test_positions_that_were_not_a_methods_own_then_are_no_row_of_it_now(self, outputs, capsys):
        write_run(outputs, {"method": "fastvid"}, everything(FULL))
        path = outputs / "LLaVA-OneVision-7B-fastvid-r0.1" / "run.json"
        assert main(["table", "1", "--results", str(outputs)]) == 0
        assert "| fastvid | 10 | 10.2 | ours | 83.3 [" in capsys.readouterr().out
        run = json.loads(path.read_text())
        run["method"]["positions"] = None
        path.write_text(json.dumps(run))
        assert main(["table", "1", "--results", str(outputs)]) == 0
        out = capsys.readouterr().out
        assert "| fastvid | 10 | - | ours | - |" in out
        assert (
            "is no run of the row 'fastvid 0.1 --option preset=llava-onevision': positions the model's own, not kept"
            in out
        )
        assert main(["runs", "--results", str(outputs)]) == 0
        assert "| fastvid-model-positions | 0.1 |" in capsys.readouterr().out
        del run["method"]["positions"]  # as of another program, which says nothing
        path.write_text(json.dumps(run))
        assert main(["table", "1", "--results", str(outputs)]) == 0
        assert "| fastvid | 10 | 10.2 | ours | 83.3 [" in capsys.readouterr().out

    def test_methods_that_are_no_longer_known_are_in_no_row(self, outputs, capsys):
        path = outputs / "LLaVA-OneVision-7B-tango-r0.1" / "run.json"
        path.write_text(path.read_text().replace('"alpha"', '"beta"'))
        assert main(["table", "1", "--results", str(outputs)]) == 0
        out = capsys.readouterr().out
        assert "| tango | 10 | - | ours | - |" in out
        assert f"{path.parent}" in out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["1"], "results"),
            (["--results", "."], "name one table (1, 2, 3, 4, same_signal) or give --all"),
            (["1", "--all", "--results", "."], "name one table"),
            (["5", "--results", "."], "unknown table '5'. Known: 1, 2, 3, 4, same_signal"),
            (["1", "--results", "nowhere"], "nowhere does not exist"),
            (["1", "--results", "OUTPUTS", "--against", "tanga"], "Did you mean 'tango'"),
            (["1", "--results", "OUTPUTS", "--experiments", "nowhere"], "leave --experiments out"),
            (["1", "--results", "OUTPUTS", "--output", "OUTPUTS"], "--output must be a file"),
            (["--all", "--results", "OUTPUTS", "--output", "FILE"], "--output must be a folder"),
        ],
    )
    def test_mistakes_exit_with_2(self, outputs, tmp_path, capsys, options, message):
        (tmp_path / "file").write_text("")
        places = {"OUTPUTS": str(outputs), "FILE": str(tmp_path / "file")}
        try:
            code = main(["table", *(places.get(option, option) for option in options)])
        except SystemExit as exit:
            code = exit.code
        assert code == 2
        assert message in capsys.readouterr().err

    def test_unreadable_results_leave_a_table_that_is_there_as_it_was(self, outputs, tmp_path, capsys):
        path = tmp_path / "table.md"
        path.write_text("old")
        (outputs / "LLaVA-OneVision-7B-none" / "run.json").write_text("{")
        assert main(["table", "1", "--results", str(outputs), "--output", str(path)]) == 2
        assert "LLaVA-OneVision-7B-none" in capsys.readouterr().err
        assert path.read_text() == "old"


class TestExperiments:
    def test_rows(self, capsys):
        assert main(["experiments", "3"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len([line for line in lines if not line.endswith(" -")]) == 1 + 6
        assert lines[2].endswith("method=tango retention_ratio=0.1 alpha=1 context_ratio=0 rope=none           92.7")

    def test_runs(self, capsys):
        assert main(["experiments", "2", "--model", "llava-video-7b", "--ratios", "0.2", "--runs"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "none -", "visionzip 0.2 --option preset=llava-video", "fastvid 0.2 --option preset=llava-video",
            "holitom 0.2", "tango 0.2", "tango 0.2 --option pruned_layer=18",
            "flashvid 0.2 --option preset=llava-video", "random 0.2", "uniform 0.2", "downsample 0.2",
            "fewer-frames 0.2",
        ]  # fmt: skip

    def test_presets_are_the_models(self, capsys):
        def fastvid(*flags):
            assert main(["experiments", "2", "--names", "fastvid", "--ratios", "0.2", "--runs", *flags]) == 0
            return capsys.readouterr().out.splitlines()

        assert fastvid() == ["fastvid 0.2 --option preset=llava-video", "fastvid 0.2 --option preset=qwen2.5-vl"]
        assert fastvid("--model", "Qwen2.5-VL-7B-Instruct") == ["fastvid 0.2 --option preset=qwen2.5-vl"]
        assert fastvid("--model", "tango-mini") == ["fastvid 0.2 --option preset=llava-onevision"]
        assert fastvid("--model", "mine") == ["fastvid 0.2"]  # nobody knows its family

    def test_a_presets_layer_is_that_of_a_shallow_model(self, capsys):
        command = ["experiments", "1", "--names", "flashvid", "--ratios", "0.1", "--runs", "--model"]
        assert main([*command, "llava-onevision-7b"]) == 0
        assert capsys.readouterr().out == "flashvid 0.1 --option preset=llava-onevision\n"
        assert main([*command, "tango-mini"]) == 0
        assert capsys.readouterr().out == "flashvid 0.1 --option preset=llava-onevision --option pruned_layer=3\n"

    def test_changes_of_all_rows_are_made_where_they_mean_something(self, capsys):
        command = ["experiments", "1", "--ratios", "0.2", "--runs", "--exact-budget", "--saliency", "attn"]
        assert main(command) == 0
        lines = {line.split()[0]: line.split()[2:] for line in capsys.readouterr().out.splitlines()}
        exact, attn = ["--option", "exact_budget=True"], ["--option", "saliency=attn"]
        assert lines["none"] == lines["fastv"] == []
        assert lines["tango"] == lines["holitom"] == [*exact, *attn]
        assert lines["uniform"] == lines["random"] == exact  # they read no saliency
        assert main(["experiments", "1", "--saliency", "atn"]) == 2
        assert "unknown saliency 'atn'. Did you mean 'attn'" in capsys.readouterr().err

    def test_a_table_by_its_name(self, capsys):
        assert main(["experiments", "same_signal", "--names", "holitom", "--runs"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"holitom 0.1 --option saliency={name}" for name in ("p-attn", "attn")]
        assert main(["experiments", "same_signl"]) == 2
        assert "unknown table 'same_signl'. Did you mean 'same_signal'" in capsys.readouterr().err

    def test_a_mistake_in_a_file_shows_before_anything_runs(self, tmp_path, capsys):
        described = yaml.safe_load((ROOT / "configs/experiments/table1.yaml").read_text())
        described["rows"][7]["retention_rate"] = described["rows"][7].pop("retention_ratio")
        (tmp_path / "table1.yaml").write_text(yaml.safe_dump(described))
        assert main(["experiments", "1", "--runs", "--experiments", str(tmp_path)]) == 2
        assert "retention_rate" in capsys.readouterr().err


class TestScripts:
    """scripts/table*.sh with an interpreter that, in place of VLMEvalKit, notes its flags and leaves made results."""

    @pytest.fixture
    def python(self, tmp_path: Path) -> Path:
        (tmp_path / "kit.py").write_text(
            "import sys\nfrom pathlib import Path\n"
            f"flags = sys.argv[1:]\nwith open({str(tmp_path / 'log')!r}, 'a') as log: print(*flags, file=log)\n"
            "if 'vidcom2' in flags: sys.exit(1)\n"
            "from tests.report.folders import everything, write_run\n"
            "pairs = list(zip(flags, flags[1:]))\n"
            "given = {n[2:].replace('-', '_'): v for n, v in pairs if n in ('--method', '--retain-ratio')}\n"
            "given |= dict(v.split('=') for n, v in pairs if n == '--option')\n"
            f"write_run(Path(dict(pairs)['--work-dir']), given, everything({PRUNED!r}))\n"
        )
        path = tmp_path / "python"
        path.write_text(
            f'#!/bin/sh\ncase "$1 $2" in\n  run.py*) shift; exec {sys.executable} {tmp_path}/kit.py "$@" ;;\n'
            f'  "-m tango_vlmeval.summary") ;;\n  *) exec {sys.executable} "$@" ;;\nesac\n'
        )
        path.chmod(0o755)
        return path

    def run(self, python: Path, script: str, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
        names = (
            "MODEL",
            "CHECKPOINT",
            "ROWS",
            "RATIOS",
            "LIMIT",
            "OUTPUT",
            "CONFIG",
            "METHODS",
            "EXTRA",
            "GPUS",
            "NODE_RANK",
            "EXACT",
            "SALIENCY",
            "TABLE",
        )
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {"PYTHON": str(python), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **settings}
        return subprocess.run(
            ["bash", str(ROOT / "scripts" / script), *flags], env=environment, cwd=python.parent, text=True,
            capture_output=True,
        )  # fmt: skip

    def test_rows_are_run_and_the_tables_written_whatever_fails(self, python, tmp_path):
        settings = {
            "CONFIG": "llava-onevision-7b",
            "MODEL": "/m",
            "OUTPUT": "out",
            "RATIOS": "0.15",
            "ROWS": "full vidcom2 tango",
        }
        done = self.run(python, "table1.sh", "--workers", "0", LIMIT="9", AGAINST="tango", **settings)
        assert done.returncode == 1
        assert "failed: vidcom2 0.15  (exit code 1)" in done.stderr
        shared = f"--config run_config/llava_onevision_7b.json --work-dir {tmp_path}/out"
        shared += " --pretrained /m --limit 9 --workers 0"
        assert (tmp_path / "log").read_text().splitlines() == [
            f"{shared} --method none",
            f"{shared} --method vidcom2 --retain-ratio 0.15",
            f"{shared} --method tango --retain-ratio 0.15",
        ]
        assert "| full | 100 | 10.2 | ours | 66.7* [" in done.stdout
        assert "| vidcom2 | 15 | - | ours | - |" in done.stdout
        assert "minus tango" in done.stdout
        assert (tmp_path / "out" / "table1.md").read_text() in done.stdout
        assert (tmp_path / "out" / "table1.csv").read_text().startswith("table,")
        assert (tmp_path / "out" / "table1.tex").read_text().startswith("% Table 1")

    def test_the_small_model_runs_without_any_setting(self, python, tmp_path):
        done = self.run(python, "table3.sh", ROWS="full", OUTPUT="out")
        assert done.returncode == 0, done.stderr
        (flags,) = (tmp_path / "log").read_text().splitlines()
        assert flags.startswith("--config run_config/tango_mini.json ")
        assert "--datasets TangoMini" in flags
        assert "; run with tango-mini**" in done.stdout

    def test_options_of_a_row_and_the_benchmarks_of_table_4(self, python, tmp_path):
        done = self.run(python, "table4.sh", CONFIG="llava-onevision-7b", OUTPUT="out", ROWS="1e4/1e2")
        assert done.returncode == 0, done.stderr
        (flags,) = (tmp_path / "log").read_text().splitlines()
        assert "--datasets Video-MME MLVU_MCQ --option base_time=10000.0 --option base_space=100.0 --method" in flags
        assert "| 1e4/1e2 | 10 | 10.2 | ours | 66.7* [" in done.stdout

    def test_exact_budgets_and_one_signal_have_files_of_their_own(self, python, tmp_path):
        settings = {"CONFIG": "llava-onevision-7b", "OUTPUT": "out", "RATIOS": "0.1", "ROWS": "holitom"}
        done = self.run(python, "table1.sh", EXACT="1", SALIENCY="p-attn", **settings)
        assert done.returncode == 0, done.stderr
        (flags,) = (tmp_path / "log").read_text().splitlines()
        assert flags.endswith("--option exact_budget=True --option saliency=p-attn --method holitom --retain-ratio 0.1")
        assert "with exact budgets; with saliency p-attn for all methods**" in done.stdout
        assert "| holitom | 10 | 10.2 | ours | 66.7* [" in done.stdout
        made = {f"table1-exact-p-attn.{end}" for end in ("md", "csv", "tex")}
        assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == made
        assert self.run(python, "table1.sh", EXACT="yes", **settings).returncode == 2

    def test_a_table_by_its_name(self, python, tmp_path):
        settings = {"CONFIG": "llava-onevision-7b", "OUTPUT": "out", "ROWS": "tango"}
        done = self.run(python, "same_signal.sh", **settings)
        assert done.returncode == 0, done.stderr
        assert [line.split("/out ")[1] for line in (tmp_path / "log").read_text().splitlines()] == [
            "--option saliency=p-attn --method tango --retain-ratio 0.1",
            "--option saliency=attn --method tango --retain-ratio 0.1",
        ]
        assert done.stdout.count("| tango | 10 | 10.2 | ours | 66.7* [") == 2
        assert (tmp_path / "out" / "same_signal.md").read_text() in done.stdout
        done = self.run(python, "run_table.sh", TABLE="5", **settings)
        assert (done.returncode, "unknown table '5'" in done.stderr) == (2, True)

    def test_the_table_alone(self, python, outputs, tmp_path):
        done = self.run(python, "table1.sh", CONFIG="llava-onevision-7b", OUTPUT=str(outputs), RUN="0")
        assert done.returncode == 0, done.stderr
        assert "| tango | 10 | 10.2 | ours | 66.7* [" in done.stdout
        assert not (tmp_path / "log").exists()

    def test_presets_are_compared_in_both_position_modes(self, python, tmp_path):
        done = self.run(python, "presets.sh", LIMIT="9", OUTPUT="out")
        assert done.returncode == 0, done.stderr
        shared = f"--config run_config/tango_mini.json --work-dir {tmp_path}/out --limit 9 --datasets TangoMini"
        off, kept = "--option static_merging=false", "--option positions=kept"
        presets = ["tango", "tango-paper", "tango-release"]
        assert (tmp_path / "log").read_text().splitlines() == [
            f"{shared} --method none",
            *(f"{shared} --method {name} --retain-ratio 0.1" for name in presets),
            f"{shared} {off} --method tango --retain-ratio 0.1",
            *(f"{shared} {kept} --method {name} --retain-ratio 0.1" for name in presets),
            f"{shared} {kept} {off} --method tango --retain-ratio 0.1",
        ]
        assert (tmp_path / "out" / "presets.md").read_text() in done.stdout
        lines = json.loads((tmp_path / "out" / "presets.json").read_text())
        assert {line["against"] for line in lines} == {"tango"}
        assert {"tango", "tango-kept", "tango-static_mergingFalse-kept"} <= {line["method"] for line in lines}

    @pytest.mark.parametrize(
        ("script", "settings", "commands"),
        [
            ("table1.sh", {"CONFIG": "llava-onevision-7b", "RUN": "0"}, ["experiments", *["table"] * 3]),
            ("presets.sh", {}, ["runs"] * 2),
        ],
    )
    def test_packages_reach_the_commands_that_read_results(self, python, tmp_path, script, settings, commands):
        text = f"import sys\nwith open({str(tmp_path / 'seen')!r}, 'a') as seen: print(*sys.argv[1:], file=seen)\n"
        (tmp_path / "a_package.py").write_text(text)
        places = os.pathsep.join((str(tmp_path), str(ROOT)))
        settings = {**settings, "OUTPUT": str(tmp_path / "out"), "TANGO_IMPORT": "a_package", "PYTHONPATH": places}
        write_run(tmp_path / "out", {"method": "none"}, everything(FULL))
        done = self.run(python, script, **settings)
        assert done.returncode == 0, done.stderr
        seen = [line.split()[:2] for line in (tmp_path / "seen").read_text().splitlines()]
        assert seen == [["--import=a_package", command] for command in commands]

    @pytest.mark.parametrize("script", ["table1.sh", "table4.sh", "same_signal.sh", "presets.sh"])
    def test_help(self, python, script):
        done = self.run(python, script, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert "LIMIT" in done.stdout

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"CONFIG": "llava-next"}, "no VLMEvalKit/run_config/llava_next.json for CONFIG=llava-next; there are:\n"),
            (
                {"MODEL": "llava-onevision-7b"},
                "MODEL=llava-onevision-7b names no checkpoint, which MODEL is; say CONFIG=",
            ),
            (
                {"MODEL": "org/mine"},
                "MODEL=org/mine needs CONFIG, too, which names its model and data sets; there are:\n",
            ),
            ({"CHECKPOINT": "mine"}, "say MODEL=mine in place of CHECKPOINT"),
        ],
    )
    def test_names_and_checkpoints_are_told_apart(self, python, tmp_path, settings, message):
        done = self.run(python, "table1.sh", **settings)
        assert done.returncode == 2
        assert message in done.stderr
        assert ("qwen2_5_vl_7b.json" in done.stderr) == message.endswith("there are:\n")
        assert not (tmp_path / "log").exists()

    @pytest.mark.parametrize("config", ["run_config/qwen2_5_vl_7b.json", "Qwen2.5-VL-7B", "qwen2.5-vl-7b"])
    def test_a_file_in_place_of_a_name(self, python, tmp_path, config):
        done = self.run(python, "table2.sh", CONFIG=config, ROWS="full", LIMIT="9")
        assert done.returncode == 0, done.stderr
        (flags,) = (tmp_path / "log").read_text().splitlines()
        folder = tmp_path / "outputs" / "qwen2.5-vl-7b"  # one, however the model is named
        assert flags == f"--config run_config/qwen2_5_vl_7b.json --work-dir {folder} --limit 9 --method none"
