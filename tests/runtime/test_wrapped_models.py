"""Models inside something else, before pruning and after it: the plain model's answer, or a refusal by name."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import tango
from tango.runtime.pruning import pruning_of
from tests import tiny, tiny_qwen
from tests.tiny import new_tokens, one_video

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # wrappers use older names of transformers'
GREEDY = {"do_sample": False, "max_new_tokens": 5}
RATIO = {"retention_ratio": 0.3}


def build(family: str):
    if family == "llava_onevision":
        return tiny.llava_onevision(), one_video()
    return tiny_qwen.model(family), tiny_qwen.inputs(family, ("Look: ", tiny_qwen.WIDE, " What?"))


def answer(model, inputs: dict) -> list[list[int]]:
    return model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def logits(model, inputs: dict) -> torch.Tensor:
    return model(**inputs).logits


class Holder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config


def lora(peft, mixed: bool = False):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return lambda model: peft.get_peft_model(model, config, mixed=mixed)


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("first", ["wrap", "prune"])
@pytest.mark.parametrize(("family", "mixed"), [("llava_onevision", True), ("qwen2_5_vl", False), ("qwen3_vl", False)])
def test_peft(family, first, mixed):
    peft = pytest.importorskip("peft")
    model, inputs = build(family)
    torch.manual_seed(0)
    if first == "wrap":
        wrapped = lora(peft, mixed)(model)
        pruning = tango.prune(wrapped, "uniform", **RATIO)
        assert pruning.model is model
        assert pruning_of(wrapped) is pruning
    else:
        pruning = tango.prune(model, "uniform", **RATIO)
        wrapped = lora(peft, mixed)(model)
    expected = answer(model, inputs), logits(model, inputs)  # the layers are the adapter's in both
    assert answer(wrapped, inputs) == expected[0]
    assert torch.equal(logits(wrapped, inputs), expected[1])
    assert pruning.stats.tokens_after < pruning.stats.tokens_before
    pruning.remove()
    full = tiny_qwen.stock(inputs)
    assert not torch.equal(logits(wrapped, full), expected[1])


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_learnt_tokens_before_the_prompt_are_refused():
    peft = pytest.importorskip("peft")
    model, inputs = build("llava_onevision")
    text = model.config.text_config
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=text.hidden_size,
        num_transformer_submodules=1, num_attention_heads=text.num_attention_heads, num_layers=text.num_hidden_layers,
    )  # fmt: skip
    wrapped = peft.get_peft_model(model, config)
    with pytest.raises(tango.UnsupportedModelError, match=r"before the prompt.*get_base_model"):
        tango.prune(wrapped, "uniform")
    with tango.prune(model, "uniform"):
        with pytest.raises(tango.TangoError, match="placeholders of a video reached its LLM"):
            wrapped(**inputs)
        with pytest.raises(tango.TangoError, match="placeholders of a video reached its LLM"):
            wrapped.generate(**inputs, **GREEDY)


def test_trained_embeddings_are_copied_while_pruned():
    peft = pytest.importorskip("peft")
    model, inputs = build("llava_onevision")
    with tango.prune(model, "uniform", **RATIO):
        expected = answer(model, inputs)
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
        )
        assert answer(wrapped, inputs) == expected


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_torch_compile(family):
    torch.compiler.reset()
    model, inputs = build(family)
    stock = tiny_qwen.stock(inputs)
    compiled = torch.compile(model, backend="eager")
    full = logits(compiled, stock)  # compiled before pruning, and not to be taken for it
    pruning = tango.prune(compiled, "uniform", **RATIO)
    assert pruning.model is model
    assert answer(compiled, inputs) == answer(model, inputs)
    short = logits(model, inputs)
    torch.testing.assert_close(logits(compiled, inputs), short)
    torch.testing.assert_close(logits(torch.compile(model, backend="eager"), inputs), short)
    pruning.remove()
    torch.testing.assert_close(logits(compiled, stock), full)
    assert not torch.allclose(full, short)


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel():
    model, inputs = build("llava_onevision")
    wrapped = nn.parallel.DistributedDataParallel(model)
    with tango.prune(wrapped, "uniform", **RATIO):
        expected = logits(model, inputs)
        assert torch.equal(logits(wrapped, inputs), expected)
    with tango.prune(model, "uniform", **RATIO):
        assert torch.equal(logits(nn.parallel.DistributedDataParallel(model), inputs), expected)


@pytest.mark.parametrize("removed", ["before", "after"])
def test_mixed_precision_that_is_unwrapped(removed):
    """accelerate takes the function of `forward` apart and binds it again."""
    from accelerate.utils import convert_outputs_to_fp32, extract_model_from_parallel

    model, inputs = build("llava_onevision")
    stock = tiny_qwen.stock(inputs)
    full = logits(model, stock)
    pruning = tango.prune(model, "uniform", **RATIO)
    expected = logits(model, inputs), answer(model, inputs)
    model._original_forward = model.forward  # as Accelerator.prepare does
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    model.forward = type(model.generate)(convert_outputs_to_fp32(autocast(model.forward.__func__)), model)
    assert logits(model, inputs).dtype == torch.float32
    if removed == "before":
        with pytest.warns(UserWarning, match="forward was replaced"):
            pruning.remove()
        assert logits(model, stock).shape == full.shape
        inside = extract_model_from_parallel(model, keep_fp32_wrapper=False)
        assert torch.equal(logits(inside, stock), full)
        return
    inside = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    assert torch.equal(logits(inside, inputs), expected[0])
    assert answer(inside, inputs) == expected[1]
    pruning.remove()
    assert torch.equal(logits(model, stock), full)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("wrapper", [Holder, nn.DataParallel, lambda m: m.model, lambda m: m.model.language_model])
def test_other_wrappers_and_parts_are_refused(wrapper):
    model, _ = build("llava_onevision")
    with pytest.raises(
        tango.UnsupportedModelError, match=r"give that (one|model) instead, and wrap it afterwards"
    ) as e:
        tango.prune(wrapper(model), "uniform")
    assert type(wrapper(model)).__name__ in str(e.value)
    with pytest.raises(tango.UnsupportedModelError, match="wrap it afterwards"):
        tango.compile_tower(wrapper(model))


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_ways_around_the_pruned_methods_are_refused(family):
    """The LLM would read placeholders as words, or the whole video; neither may pass for pruning."""
    model, inputs = build(family)
    stock = tiny_qwen.stock(inputs)
    text = {name: stock[name] for name in ("input_ids", "attention_mask")}
    ways = [
        lambda: model(**text), lambda: model.generate(**text, **GREEDY), lambda: model.model(**stock),
        lambda: type(model).forward(model, **stock),
    ]  # fmt: skip
    with tango.prune(model, "uniform", **RATIO):
        for way in ways:
            with pytest.raises(tango.TangoError, match="placeholders of a video reached its LLM"):
                way()
        model(input_ids=torch.tensor([[65, 66, 67]]))
    for way in ways:
        way()


def test_replicas_are_refused():
    model, _ = build("llava_onevision")
    with tango.prune(model, "uniform"), pytest.raises(tango.TangoError, match="DistributedDataParallel instead"):
        model._replicate_for_data_parallel()


def test_another_dtype_and_saving_while_pruned(tmp_path):
    model, inputs = build("llava_onevision")
    with tango.prune(model, "tango", **RATIO) as pruning:
        model.save_pretrained(tmp_path)
        torch.save(model.state_dict(), io.BytesIO())
        for dtype in (torch.bfloat16, torch.float64):
            assert new_tokens(model.to(dtype), inputs, model.generate(**inputs, **GREEDY))
        with pytest.raises(tango.TangoError, match="remove"):
            torch.save(model, io.BytesIO())
        shallow = copy.copy(model)
        assert answer(shallow, inputs) == answer(model, inputs)
    assert pruning.stats is not None
    loaded = type(model).from_pretrained(tmp_path)
    assert set(loaded.state_dict()) == set(model.state_dict())
