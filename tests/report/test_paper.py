"""tango.report.paper and configs/experiments: the published numbers, and which row of ours answers to which of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tango
from tango.containers import Signal
from tango.errors import OptionError, TangoError, UnknownNameError
from tango.evaluation import MethodConfig
from tango.methods import build_layer_pruner, build_pruner
from tango.methods.registry import ready_pruners
from tango.report.experiments import available_tables, read_experiment, run_line
from tango.report.paper import TABLES, published

ROOT = Path(tango.__file__).parents[1]
EXPERIMENTS = ROOT / "configs" / "experiments"
ALL = ["1", "2", "3", "4", "same_signal"]
FOUR = ("Video-MME", "MVBench", "LongVideoBench", "MLVU")


class TestPublished:
    @pytest.mark.parametrize(("table", "count"), [(1, 20), (2, 17), (3, 6), (4, 5)])
    def test_every_row_is_there(self, table: int, count: int) -> None:
        rows = published(table)
        assert len(rows) == count
        assert all(0 < value <= 100 for row in rows for value in row.percent.values())

    @pytest.mark.parametrize("table", [1, 2])
    def test_averages_and_percentages_follow_from_the_columns(self, table: int) -> None:
        full: dict[str, float] = {}
        for row in published(table):
            mean = sum(row.percent[name] for name in FOUR) / 4
            full.setdefault(row.setting["model"], mean)
            assert row.percent["average"] == pytest.approx(mean, abs=0.11)  # four rows round differently
            assert row.percent["performance"] == pytest.approx(100 * mean / full[row.setting["model"]], abs=0.21)
            thirds = [row.percent[f"Video-MME/{group}"] for group in ("short", "medium", "long")]
            assert row.percent["Video-MME"] == pytest.approx(sum(thirds) / 3, abs=0.11)

    def test_tables_3_and_4_repeat_tables_best_row(self) -> None:
        best = next(row.percent for row in published(1) if row.setting["method"] == "tango")
        assert published(3)[-1].percent.items() <= best.items()
        assert published(4)[1].percent.items() <= best.items()

    def test_another_table(self) -> None:
        with pytest.raises(ValueError, match=r"\(1, 2, 3, 4\), got 5"):
            published(5)

    def test_reports_need_no_torch(self) -> None:
        modules = "experiments, readers, render, tables, curves"
        code = f"import sys; from tango.report import {modules}; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout == "False\n"


class TestExperiments:
    @pytest.mark.parametrize("table", [1, 2])
    def test_rows_name_the_methods_and_ratios_of_the_papers(self, table: int) -> None:
        rows = [row for row in read_experiment(EXPERIMENTS, table).rows if row.published]
        for row, paper in zip(rows, published(table), strict=True):
            assert row.name == paper.setting["method"]
            assert row.model == paper.setting["model"]
            assert row.settings.get("retention_ratio", 1.0) == float(paper.setting["retention_ratio"])
            assert row.published == paper.percent
            inside = paper.setting["method"].endswith("+intra")
            assert row.settings.get("pruned_layer") == (18 if inside else None)  # section 5.2 of the paper

    def test_rows_of_table_3_take_away_what_the_paper_takes_away(self) -> None:
        full, *rows = [row for row in read_experiment(EXPERIMENTS, 3).rows if row.section != "controls"]
        assert full.settings == {"method": "none"}
        for row, paper in zip(rows, published(3), strict=True):
            options = MethodConfig.from_settings(row.settings).to_dict()["options"]
            has = {part: text == "yes" for part, text in paper.setting.items()}
            assert (options["alpha"] > 1) == has["diversity_selection"]
            assert (options["context_ratio"] > 0) == has["st_merge"]
            assert (options["rope"] != "none") == has["st_rope"]
            assert (options["rope"] == "seconds") == has["timestamp_alignment"]

    def test_rows_of_table_4_have_the_papers_bases(self) -> None:
        rows = [row for row in read_experiment(EXPERIMENTS, 4).rows if row.published]
        for row, paper in zip(rows, published(4), strict=True):
            for name, text in paper.setting.items():
                assert row.settings[name] == float(text)

    @pytest.mark.parametrize("table", ALL)
    def test_files_hold_deltas_that_make_configurations(self, table: str) -> None:
        experiment = read_experiment(EXPERIMENTS, table)
        configurations = [(row.model, MethodConfig.from_settings(row.settings).label) for row in experiment.rows]
        assert len(set(configurations)) == len(configurations)
        assert set(experiment.papers_models) <= set(experiment.models)

    @pytest.mark.parametrize("table", ALL)
    def test_every_table_has_all_tokens_and_controls_at_every_ratio(self, table: str) -> None:
        rows = read_experiment(EXPERIMENTS, table).rows
        for model in {row.model for row in rows}:
            own = [row.settings for row in rows if row.model == model]
            assert own[0] == {"method": "none"}
            for ratio in {settings["retention_ratio"] for settings in own[1:]}:
                plain = [settings["method"] for settings in own if settings.get("retention_ratio") == ratio]
                assert {"random", "uniform", "downsample", "fewer-frames"} <= set(plain)

    def test_no_row_of_the_papers_tables_names_a_saliency_or_positions(self) -> None:
        """They are the methods' own."""
        rows = [row for table in TABLES for row in read_experiment(EXPERIMENTS, table).rows]
        assert {name for row in rows for name in row.settings} & {"saliency", "positions"} == set()

    def test_the_same_signal_for_every_method_that_reads_one(self) -> None:
        rows = read_experiment(EXPERIMENTS, "same_signal").rows
        known = [name for name in ready_pruners() if not name.startswith(("tango-", "flashvid-"))]
        readers = {name for name in known if Signal.SALIENCY in build_pruner(name).wants}
        for signal in ("p-attn", "attn"):
            own = [row.settings for row in rows if row.section == signal]
            assert {settings["method"] for settings in own} == readers
            assert {settings["saliency"] for settings in own} == {signal}
        assert all("saliency" not in row.settings for row in rows if row.section in (None, "controls"))

    def test_what_the_authors_say_stands_beside_the_papers_rerun(self) -> None:
        rows = {row.name: row for row in read_experiment(EXPERIMENTS, 1).rows if row.section == "10 %"}
        both = {name: (row.published.get("performance"), row.authors) for name, row in rows.items()}
        assert both["holitom"] == (96.7, {"performance": 99.1})
        assert both["fastvid"] == (96.4, {"performance": 98.0})
        assert rows["flashvid"].authors == {"performance": 99.1}  # the paper has no row of it

    @pytest.mark.parametrize("table", ALL)
    def test_frames_are_the_papers(self, table: str) -> None:
        experiment = read_experiment(EXPERIMENTS, table)
        for model in experiment.papers_models:
            assert experiment.num_frames_of(model) == (64 if model == "LLaVA-Video-7B" else 32)
        assert experiment.num_frames_of("tango-mini") is None

    def test_one_of_several_models(self) -> None:
        experiment = read_experiment(EXPERIMENTS, 2)
        for name in ("qwen2.5-vl-7b", "Qwen2.5-VL-7B-Instruct"):
            rows = experiment.for_model(name).rows
            assert {row.model for row in rows} == {"Qwen2.5-VL-7B"}
            assert len([row for row in rows if row.published]) == 4

    def test_another_model_runs_every_configuration_once(self) -> None:
        experiment = read_experiment(EXPERIMENTS, 2).for_model("tango-mini")
        assert experiment.title.endswith("; run with tango-mini")
        rows = experiment.rows
        # Qwen's four are among LLaVA-Video's; FastV cannot keep 10 % of four layers' tokens.
        assert len([row for row in rows if row.published]) == 12
        assert len({repr(sorted(row.settings.items())) for row in rows}) == len(rows)
        assert "fastv" not in {row.name for row in rows}
        assert {row.model for row in rows} == {"tango-mini"}
        assert {row.settings.get("pruned_layer") for row in rows} == {None, 3}
        build_layer_pruner("fastv-merge", layer=3)

    def test_some_rows(self) -> None:
        experiment = read_experiment(EXPERIMENTS, 1)
        chosen = experiment.only(names=["full", "tango"], ratios=[0.1, 0.2]).rows
        assert [run_line(row) for row in chosen] == ["none -", "tango 0.1", "tango 0.2"]
        with pytest.raises(UnknownNameError, match="unknown row of Table 1 'tongo'"):
            experiment.only(names=["tongo"])
        with pytest.raises(OptionError, match=r"no rows at ratio 0.3; its ratios are \[0.05, 0.1, 0.15, 0.2\]"):
            experiment.only(ratios=[0.3])

    def test_flags_of_a_row(self) -> None:
        rows = read_experiment(EXPERIMENTS, 3).rows
        assert run_line(rows[1]) == "tango 0.1 --option alpha=1 --option context_ratio=0 --option rope=none"

    def test_which_there_are(self, tmp_path: Path) -> None:
        assert available_tables(EXPERIMENTS) == ALL
        (tmp_path / "mine.yaml").write_text((EXPERIMENTS / "same_signal.yaml").read_text())
        assert available_tables(tmp_path) == ["mine"]
        assert read_experiment(tmp_path, "mine").heading == "mine"
        assert read_experiment(EXPERIMENTS, 3).heading == "Table 3"
        for name in ("mien", "1"):
            with pytest.raises(UnknownNameError, match=f"unknown table '{name}'.* Known: mine"):
                read_experiment(tmp_path, name)

    def test_a_folder_without_them(self, tmp_path: Path) -> None:
        with pytest.raises(TangoError, match=r"table1.yaml does not exist; leave --experiments out"):
            read_experiment(tmp_path, 1)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"rows": [{"paper_row": 21, "model": "m", "method": "none"}]},
                "row 1 answers to row 21 of the paper's 20",
            ),
            ({"rows": [{"paper_row": 1, "model": "m"}]}, "KeyError 'method'"),
            ({"rows": None}, "cannot read"),
            ({"columns": ["videomme"]}, "benchmarks go by the paper's names, got videomme"),
            (
                {"rows": [{"model": "m", "method": "none", "authors": {"perf": 99}}]},
                "authors' numbers are for columns of the table, got perf",
            ),
        ],
    )
    def test_mistakes_name_the_file(self, tmp_path: Path, change: dict[str, object], message: str) -> None:
        described = yaml.safe_load((EXPERIMENTS / "table1.yaml").read_text())
        (tmp_path / "table1.yaml").write_text(yaml.safe_dump({**described, **change}))
        with pytest.raises(TangoError, match=message) as error:
            read_experiment(tmp_path, 1)
        assert "table1.yaml" in str(error.value)

    def test_a_file_that_is_no_yaml(self, tmp_path: Path) -> None:
        (tmp_path / "table1.yaml").write_text("rows: [")
        with pytest.raises(TangoError, match=r"cannot read .*table1.yaml"):
            read_experiment(tmp_path, 1)
