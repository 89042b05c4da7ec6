"""Checkpoints that are damaged, incomplete, of another kind or hostile: `tango.load` names the fault in one line."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tango
from tango import CheckpointError
from tango.toy import write_checkpoint
from tests import lmms_checkpoint, tiny, tiny_qwen

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4932048512\n"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_checkpoint(folder, image_size=tiny.IMAGE_SIZE, width=32)
    return folder


@pytest.fixture
def checkpoint(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    return edit


def renamed(old: str, new: str) -> Change:
    return weights(lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()})


def added(name: str) -> Change:
    return weights(lambda tensors: {**tensors, name: torch.zeros(4, 4)})


def config(part: str | None = None, **values: Any) -> Change:
    def edit(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        (fields if part is None else fields[part]).update(values)
        (folder / "config.json").write_text(json.dumps(fields))

    return edit


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def only(name: str) -> Change:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def sharded(index: str) -> Change:
    def edit(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(index)

    return edit


def adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')


HEAD = "language_model.lm_head.weight"
LLM = "language_model.model."  # as transformers writes it
MLP, NORM = f"{LLM}layers.1.mlp.", f"{LLM}norm.weight"
FIRST_SHARD = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
NO_NUMBER = weights(lambda tensors: {**tensors, NORM: tensors[NORM] * torch.nan})
FAULTS: dict[str, tuple[Change, str]] = {
    "weights missing": (
        weights(lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(MLP)}),
        r"3 weights are missing: model\.language_model\.layers\.1\.mlp\.down_proj\.weight, .*; download",
    ),
    "weights of other names": (renamed(LLM, "llm."), r"weights are missing: .* names that .*: llm\."),
    "one of another name": (renamed(MLP + "up_", MLP + "oop_"), r"1 weights are missing: .*up_proj.*oop_proj"),
    "one more layer": (added(f"{LLM}layers.4.mlp.up_proj.weight"), r"1 weights are unexpected: .*layers\.4\.mlp"),
    "an adapter's weights left in": (added(f"{LLM}layers.0.self_attn.q_proj.lora_A.weight"), "unexpected"),
    "fewer rows": (
        weights(lambda tensors: {**tensors, HEAD: tensors[HEAD][1:].contiguous()}),
        r"1 weights are of another shape than config.json says: lm_head\.weight \(260x128, not 261x128\)",
    ),
    "no number": (NO_NUMBER, r"1 weights are NaN or infinite: model\.language_model\.norm\.weight"),
    "a far larger config": (config("text_config", hidden_size=100_000), "config.json describes a model of"),
    "cut short": (cut, r"model\.safetensors: it is cut short, damaged"),
    "no safetensors": (text("model.safetensors", "abc" * 99), r"model\.safetensors: it is cut short, damaged"),
    "empty weights": (text("model.safetensors", ""), r"model\.safetensors: it is empty; download it again"),
    "pointer to weights": (text("model.safetensors", POINTER), r"model\.safetensors: it is a git-lfs pointer"),
    "pointer to the config": (text("config.json", POINTER), r"config\.json: it is a git-lfs pointer.*git lfs pull"),
    "pointer to the tokenizer": (text("tokenizer.json", POINTER), r"tokenizer\.json: it is a git-lfs pointer"),
    "a file of several missing": (sharded(FIRST_SHARD), r"lacks 1 of the 2 files .*: model-00002-of-00002"),
    "an index that is none": (sharded('{"weight_map": [1]}'), r"index\.json: weight_map must"),
    "an adapter alone": (adapter, r"holds an adapter \(LoRA\) for owner/base.*merge_and_unload"),
    "pickled weights": (only("pytorch_model.bin"), r"no weights in safetensors; pytorch_model\.bin can run code"),
    "pickled by another name": (only("last.ckpt"), r"last\.ckpt can run code.*save_pretrained"),
    "pickled by the config": (config(transformers_weights="adapter_model.bin"), "the weights 'adapter_model.bin'"),
    "no weights at all": (lambda folder: (folder / "model.safetensors").unlink(), r"expected model\.safetensors"),
    "a config that is a list": (text("config.json", "[1]"), "expected a JSON object, got list"),
    "a config without end": (text("config.json", '{"a":' * 50_000), r"config\.json: it is nested too deeply"),
    "a config of bytes": (lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xff"}'), "cannot read"),
    "patches of no size": (config("vision_config", patch_size=0), r"vision_config\.patch_size must be .*, got 0"),
    "countless layers": (config("text_config", num_hidden_layers=10**9), "num_hidden_layers must be at most 1000"),
    "a negative width": (config("text_config", hidden_size=-1), r"text_config\.hidden_size must be .*, got -1"),
    "a type that torch has not": (config(dtype="float17"), "float17"),
    "a kernel from the hub": (config(attn_implementation="owner/kernel"), "attention kernel 'owner/kernel'"),
    "a quantization without backend": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "gptq|GPTQ"),
    "a broken tokenizer": (text("tokenizer.json", "{}"), "cannot load the tokenizer of"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer: expected tokenizer.json"),
    "another model's tokenizer": (config(video_token_index=3), "<video> is 260, where config.json says 3"),
    "a template that breaks out": (text("chat_template.jinja", "{{ cycler.__init__.__globals__ }}"), "chat template"),
    "a template that is none": (text("chat_template.jinja", "{% if %}"), "the chat template of"),
    "a template that is a number": (text("chat_template.json", '{"chat_template": 5}'), "the chat template of"),
    "generation settings": (text("generation_config.json", "[]"), r"generation_config\.json: expected a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_in_one_line(checkpoint, change, message):
    change(checkpoint)
    with pytest.raises(CheckpointError, match=message) as error:
        tango.load(checkpoint)
    assert str(error.value).count("\n") == 0
    assert len(str(error.value)) < 900


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_no_code_of_a_checkpoint_runs(checkpoint, tmp_path, monkeypatch):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nclass X: pass\n"
    for name in ("evil.py", "custom_generate/generate.py"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text(code)
    (checkpoint / "training_args.bin").write_bytes(pickle.dumps(Trap(mark)))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    names = ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoModelForImageTextToText")
    config(auto_map=dict.fromkeys(names, "evil.X"))(checkpoint)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.X", "evil.X"]}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    tango.load(checkpoint)  # of a known type: what comes with it is not needed
    config(model_type="evil")(checkpoint)
    with pytest.raises(CheckpointError, match="cannot load"):
        tango.load(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    config(model_type="llava_onevision")(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(CheckpointError, match="can run code"):
        tango.load(checkpoint)
    assert not mark.exists()


def test_weights_of_another_task_are_a_note(checkpoint):
    added("value_head.weight")(checkpoint)
    with pytest.warns(UserWarning, match=r"1 weights of .* are not used: value_head\.weight"):
        tango.load(checkpoint)


def test_what_older_files_hold_too_much_of_is_no_matter(checkpoint):
    for name in (
        "model.language_model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.vision_tower.embeddings.position_ids",
        "model.vision_tower.head.probe",
    ):
        added(name)(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tango.load(checkpoint)


def test_numbers_too_large_for_the_type_asked_for(checkpoint):
    weights(lambda tensors: {**tensors, NORM: tensors[NORM] * 1e6})(checkpoint)
    tango.load(checkpoint, dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"NaN or infinite: .* too large for float16"):
        tango.load(checkpoint, dtype="float16")


def published(name: str, kind: str) -> str:
    """What the hub's files call a weight of a model's state."""
    if kind == "qwen3_vl":
        return name
    if kind == "llava_onevision":
        for ours, theirs in (
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.", ""),
        ):
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["llava_onevision", *tiny_qwen.FAMILIES])
def test_the_names_of_published_files_are_known(tmp_path, kind, tied):
    """Tied heads are in no file; everything else is loaded to the last number."""
    model = tiny.llava_onevision() if kind == "llava_onevision" else tiny_qwen.model(kind)
    (tiny if kind == "llava_onevision" else tiny_qwen).tokenizer().save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        del state["lm_head.weight"]
    model.config.save_pretrained(tmp_path)
    save_file({published(k, kind): v for k, v in state.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, _ = tango.load(tmp_path)
    found = loaded.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    if tied:
        assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_faults_of_the_other_layout(tmp_path):
    lmms_checkpoint.write(tmp_path, lmms_checkpoint.twin())
    config(hidden_size=0)(tmp_path)
    with pytest.raises(CheckpointError, match=r"hidden_size"):
        tango.load(tmp_path)
    (tmp_path / "model.safetensors").write_text(POINTER)
    config(hidden_size=128)(tmp_path)
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        tango.load(tmp_path)


HEADS: dict[str, tuple[Change, str]] = {
    "missing": (weights(lambda tensors: {k: v for k, v in tensors.items() if "mlp" not in k}), "weights are missing"),
    "shape": (config(num_attention_heads=5), "num_attention_heads must divide the width 32"),
    "infinite": (weights(lambda tensors: {k: v * torch.inf for k, v in tensors.items()}), "NaN or infinite"),
    "pointer": (text("model.safetensors", POINTER), "git-lfs pointer"),
    "config": (text("config.json", "[]"), "expected a JSON object"),
    "no head": (weights(lambda tensors: {k: v for k, v in tensors.items() if "head" not in k}), "holds no SigLIP"),
}


@pytest.mark.parametrize(("change", "message"), HEADS.values(), ids=HEADS)
def test_faults_of_the_pooling_head(checkpoint, change, message):
    change(checkpoint / "siglip")
    with pytest.raises(tango.TangoError, match=message):
        tango.load(checkpoint)


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu", "vulkan"])
def test_devices_that_are_not_there(checkpoint, device):
    with pytest.raises(tango.TangoError, match=f"device.*{device}"):
        tango.load(checkpoint, device=device)
