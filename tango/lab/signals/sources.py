"""Where visual tokens come from: a model that `tango.load` loads, or a bare vision tower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from tango.containers import Signal, Video, VisualTokens
from tango.models import adapter_class
from tango.models.processors.protocol import ChatProtocol
from tango.profiling import StageTimer
from tango.runtime.answering import prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Source(Protocol):
    """Turns videos into visual tokens."""

    model: PreTrainedModel  # what learned methods are bound to
    default_num_frames: int

    def check(self, needs: Signal, method: str) -> None:
        """Raise MissingSignalError unless a method's signals can be supplied."""

    def encode(self, video: Video, wants: Signal) -> VisualTokens:
        """The visual tokens of a video, with the wanted signals."""


class ModelSource:
    """The tower, projector and pooling of a model; its language model does not run."""

    def __init__(self, model: PreTrainedModel, processor: ChatProtocol, *, saliency: str):
        self.model, self._processor = model, processor
        self._adapter = adapter_class(model.config)(model, saliency=saliency)
        self.default_num_frames = processor.default_num_frames

    def check(self, needs: Signal, method: str) -> None:
        self._adapter.check(needs, method)

    @torch.inference_mode()
    def encode(self, video: Video, wants: Signal) -> VisualTokens:
        inputs = prepare(self._processor, video, "").to(self.model.device)
        with self._adapter.tower_scope():
            (tokens,) = self._adapter.encode_videos(inputs, wants, StageTimer()).videos
        return tokens
