"""Stock transformers, timed from outside: what all tokens cost without any code of Tango's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tango.models import adapter_class
from tango.profiling import StageTimer
from tango.runtime.stats import PruningStats, VideoStats

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel


def generate(model: PreTrainedModel, inputs: BatchFeature, **options: Any) -> tuple[Tensor, PruningStats]:
    """Generate greedily with the unpruned model; return the new tokens (B, n), and counts and stages.

    "tower" is the vision tower's pass, "prefill" what follows from the LLM's first layer to its head, "between" all
    else from the call to the first token, the projector included. A video's newline counts as a visual token.

    Raises:
        ValueError: stock code refuses these inputs; LLaVA-Video's, whose newlines it does not know.
    """
    adapter, timer = adapter_class(model.config)(model), StageTimer(model.device)
    given = {name: value for name, value in inputs.items() if name not in adapter.own_inputs}
    ids = given["input_ids"]
    with torch.inference_mode(), _stages(model, timer):
        new = model.generate(**given, do_sample=False, **options)[:, ids.shape[1] :]
    length, count = ids.shape[1], int((ids == adapter.video_token_id).sum())
    video = VideoStats(frames=1, frames_encoded=1, grid=(1, count), tokens_before=count, tokens_after=count)
    return new, PruningStats(
        method="stock",
        retention_ratio=1.0,
        videos=(video,),
        entering_before=count,
        entering_after=count,
        prompt_before=(length,),
        prompt_after=(length,),
        timer=timer,
    )


@contextmanager
def _stages(model: PreTrainedModel, timer: StageTimer) -> Iterator[None]:
    """Time the stages of the first pass by hooks, which leave with it; then decoding."""
    adapter = adapter_class(model.config)(model)
    began: dict[str, Any] = {}
    begin = timer.mark()
    timer.add("between", begin, begin)  # what precedes the tower counts, too

    def start(stage: str) -> Callable[..., None]:
        return lambda *_: began.update({stage: timer.mark()})

    def end_of_pass(*_: object) -> None:
        began["decoding"] = timer.mark()
        timer.add("prefill", began["prefill"], began["decoding"])
        hooks.close()

    with ExitStack() as hooks:
        tower = adapter.tower(model)
        for handle in (
            tower.register_forward_pre_hook(start("tower")),
            tower.register_forward_hook(lambda *_: timer.add("tower", began["tower"])),
            adapter.decoder.register_forward_pre_hook(start("prefill")),
            model.register_forward_hook(end_of_pass),
        ):
            hooks.callback(handle.remove)
        yield
    timer.add("decoding", began["decoding"])
