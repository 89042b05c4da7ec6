"""What run.py makes of flags, JSON files and the environment, before it starts anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tango import OptionError, TangoError

KIT = Path(__file__).parents[2] / "VLMEvalKit"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(KIT))
    monkeypatch.chdir(KIT)


def resolve(*flags: str, **environ: str) -> Any:
    from tango_vlmeval.settings import parser, resolve

    known, rest = parser().parse_known_args(list(flags))
    assert rest == []
    return resolve(known, environ)


def written(folder: Path, **entry: Any) -> str:
    path = folder / "config.json"
    data = {"MVBench_8frame": {"class": "MVBench", "dataset": "MVBench", "nframe": 8}}
    path.write_text(json.dumps({"model": {"M": {"class": "Tango", "pretrained": "p", **entry}}, "data": data}))
    return f"--config={path}"


class TestRunConfigs:
    @pytest.mark.parametrize(
        ("name", "key", "num_frames", "checkpoint"),
        [
            ("llava_onevision_7b", "LLaVA-OneVision-7B", 32, "lmms-lab/llava-onevision-qwen2-7b-ov"),
            ("llava_video_7b", "LLaVA-Video-7B", 64, "lmms-lab/LLaVA-Video-7B-Qwen2"),
            ("qwen2_5_vl_7b", "Qwen2.5-VL-7B", 32, "Qwen/Qwen2.5-VL-7B-Instruct"),
        ],
    )
    def test_models_and_frames_of_the_paper(self, name: str, key: str, num_frames: int, checkpoint: str) -> None:
        run = resolve(f"--config=run_config/{name}.json", "--method=tango", "--retain-ratio=0.1")
        ((model_name, model),) = run.models.items()
        assert model_name == f"{key}-tango-r0.1"
        assert model.arguments["pretrained"] == checkpoint
        assert [entry["class"] for entry in run.config["data"].values()] == [
            "VideoMME",
            "MVBench",
            "LongVideoBench",
            "MLVU_MCQ",
        ]
        assert {entry["nframe"] for entry in run.config["data"].values()} == {num_frames}
        assert all(data.endswith(f"_{num_frames}frame") for data in run.config["data"])
        assert run.config["model"] == {model_name: {}}

    def test_they_are_all_tested(self) -> None:
        others = {"tango_mini"}  # its own test is test_mini.py
        assert len({path.stem for path in (KIT / "run_config").iterdir()} - others) == 3


def test_help_names_every_flag_of_the_release() -> None:
    from tango_vlmeval.settings import RELEASE_FLAGS, parser

    shown = parser().format_help()
    assert len(RELEASE_FLAGS) == 10
    assert all(f"--{flag} X" in shown for flag in RELEASE_FLAGS)


class TestPrecedence:
    def test_flags_then_the_entry_then_the_environment_then_defaults(self, tmp_path: Path) -> None:
        config = written(tmp_path, retain_ratio=0.2, alpha=2.0, method="tango")
        environ = {"WRAPPER": "uniform", "TANGO_ALPHA": "3", "TANGO_BASE_TIME": "5000", "TANGO_BATCH_SIZE": "4"}
        ((_, model),) = resolve(config, "--retain-ratio=0.15", "--num-neighbors=5", **environ).models.items()
        options = model.method.options
        assert model.method.method == "tango"
        assert options["retention_ratio"] == 0.15
        assert (options["alpha"], options["base_time"], options["num_neighbors"]) == (2.0, 5000, 5)
        assert model.arguments["batch_size"] == 4
        assert model.method.to_dict()["options"]["context_ratio"] == 0.4

    def test_the_environment_alone(self, tmp_path: Path) -> None:
        ((name, _),) = resolve(written(tmp_path), WRAPPER="uniform", TANGO_RETAIN_RATIO="0.3").models.items()
        assert name == "M-uniform-r0.3"

    def test_every_flag_of_the_release(self, tmp_path: Path) -> None:
        flags = {
            "similarity-threshold": "0.7", "context-ratio": "0.3", "alpha": "1.25", "base-time": "9000",
            "base-space": "900", "num-neighbors": "6", "segment-type": "fastvid", "retain-ratio": "0.1",
            "pruned-layer": "18", "pre-retain-ratio": "0.12",
        }  # fmt: skip
        given = [word for name, value in flags.items() for word in (f"--{name}", value)]
        ((_, model),) = resolve(written(tmp_path), "--method", "tango", *given).models.items()
        expected = {
            "segment_threshold": 0.7, "context_ratio": 0.3, "alpha": 1.25, "base_time": 9000, "base_space": 900,
            "num_neighbors": 6, "segmentation": "fastvid", "retention_ratio": 0.12,
        }  # fmt: skip
        assert expected.items() <= model.method.options.items()
        assert (model.method.layer_pruner, model.method.layer_options["layer"]) == ("fastv-merge", 18)

    def test_a_layer_solves_the_ratio_before_the_llm(self, tmp_path: Path) -> None:
        flags = ("--method=tango", "--retain-ratio=0.1", "--pruned-layer=18")
        ((name, model),) = resolve(written(tmp_path), *flags).models.items()
        assert name == "M-tango-m0.1-fastv-merge18"
        assert model.method.mean_retention_ratio == 0.1
        assert model.method.to_dict()["layer_options"]["retention_ratio"] == 0.5


class TestNames:
    """Results that may differ lie in different folders."""

    @pytest.mark.parametrize("flag", ["--retain-ratio=0.15", "--alpha=2", "--limit=5", "--option=saliency=attn"])
    def test_settings_show_in_the_name(self, tmp_path: Path, flag: str) -> None:
        config = written(tmp_path)
        assert resolve(config, "--method=tango", flag).models.keys() != resolve(config, "--method=tango").models.keys()

    def test_other_settings_in_a_folder_are_refused(self, tmp_path: Path) -> None:
        config, out = written(tmp_path), f"--work-dir={tmp_path}"
        resolve(config, out).store(write=True)
        resolve(config, out, "--workers=0", "--batch-size=2").store(write=True)  # answers do not depend on these
        with pytest.raises(OptionError, match=r"other settings; model: got .*'pretrained': 'q'.* there .*'p'"):
            resolve(config, out, "--pretrained=q").store(write=False)
        more_frames = Path(config.partition("=")[2])
        more_frames.write_text(more_frames.read_text().replace('"nframe": 8', '"nframe": 16'))
        with pytest.raises(OptionError, match=r"other settings; MVBench_8frame: got .*16"):
            resolve(config, out).store(write=False)

    def test_data_sets_may_be_added(self, tmp_path: Path) -> None:
        config, out = "--config=run_config/llava_onevision_7b.json", f"--work-dir={tmp_path}"
        for name in ("MVBench", "Video-MME_32frame"):
            resolve(config, out, "--datasets", name).store(write=True)
        (stored,) = tmp_path.glob("*/tango_args.json")
        assert list(json.loads(stored.read_text())["settings"]["data"]) == ["MVBench_32frame", "Video-MME_32frame"]

    def test_models_of_the_toolkit_stay_as_they_are(self, tmp_path: Path) -> None:
        path = Path(written(tmp_path).partition("=")[2])
        config = json.loads(path.read_text())
        config["model"]["other"] = {"class": "Qwen2VLChat", "model_path": "x"}
        path.write_text(json.dumps(config))
        run = resolve(f"--config={path}")
        assert run.config["model"]["other"] == {"class": "Qwen2VLChat", "model_path": "x"}
        assert list(run.models) == ["M-none"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is missing; the ready ones are in run_config/"),
        (["--config=nowhere.json"], "cannot read nowhere.json: No such file"),
        (["--config=README.md"], 'README.md must be JSON with entries under "model" and "data"'),
        (["--config=run_config/llava_video_7b.json", "--datasets", "MVB"], "no data set 'MVB' in the JSON file; there"),
        (["--config=run_config/llava_video_7b.json", "--limit", "few"], "limit must be a whole number, got 'few'"),
        (["--config=run_config/llava_video_7b.json", "--workers", "-1"], "workers must be 0 or more, got -1"),
        (["--config=run_config/llava_video_7b.json", "--option", "alpha"], "--option needs NAME=VALUE, got 'alpha'"),
        (["--config=run_config/llava_video_7b.json", "--method", "x"], "unknown method 'x'"),
        (["--config=run_config/llava_video_7b.json", "--retain-ratio", "0.1"], "'none' keeps all tokens"),
        (
            ["--config=run_config/llava_video_7b.json", "--method=tango", "--option", "alhpa=2"],
            "unknown option of tango 'alhpa'. Did you mean 'alpha'",
        ),
    ],
)
def test_mistakes_are_explained(flags: list[str], message: str) -> None:
    with pytest.raises(TangoError, match=message):
        resolve(*flags)


def test_an_entry_without_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": {"M": {"class": "Tango"}}, "data": {}}))
    with pytest.raises(OptionError, match='model M has no checkpoint; add "pretrained"'):
        resolve(f"--config={path}")


@pytest.mark.parametrize(
    ("key", "flags", "added"),
    [
        ("", [], ["--judge", "exact_matching"]),
        ("", ["--judge-retry=3"], ["--judge", "exact_matching"]),
        ("sk-1", [], []),
        ("", ["--judge", "gpt-4o-mini"], []),
        ("", ["--judge-base-url=http://judge/v1"], []),
    ],
)
def test_scores_are_by_exact_matching_unless_there_is_a_judge(
    key: str, flags: list[str], added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tango_vlmeval.launcher import _judge

    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert _judge(flags) == added


class TestSeveral:
    def test_every_method_at_every_ratio_and_all_tokens_once(self, tmp_path: Path) -> None:
        run = resolve(written(tmp_path), "--methods", "none", "tango", "random", "--ratios", "0.1", "0.2")
        assert list(run.models) == ["M-none", "M-tango-r0.1", "M-tango-r0.2", "M-random-r0.1", "M-random-r0.2"]
        assert run.config["model"] == {name: {} for name in run.models}
        assert run.models["M-random-r0.2"].method.options["retention_ratio"] == 0.2

    def test_ratios_of_one_method(self, tmp_path: Path) -> None:
        assert list(resolve(written(tmp_path), "--method=tango", "--ratios", "0.1", "0.2").models) == [
            "M-tango-r0.1", "M-tango-r0.2",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "flags", [("--method=tango", "--methods", "random"), ("--retain-ratio=0.1", "--ratios", "0.2")]
    )
    def test_one_and_several_are_refused_together(self, flags: tuple[str, ...], tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="not both"):
            resolve(written(tmp_path), *flags)

    def test_data_options_go_into_every_entry(self, tmp_path: Path) -> None:
        run = resolve(written(tmp_path), "--data-option", "num_clips=2", "--data-option", "control=blank")
        assert run.config["data"] == {
            "MVBench_8frame": {"class": "MVBench", "dataset": "MVBench", "nframe": 8, "num_clips": 2,
                               "control": "blank"}
        }  # fmt: skip
        with pytest.raises(OptionError, match="--data-option needs NAME=VALUE, got 'num_clips'"):
            resolve(written(tmp_path), "--data-option", "num_clips")
