"""A bare vision tower of transformers, without projector and language model, as a source of visual tokens."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tango.annotations import Float
from tango.containers import Signal, Video, VisualTokens
from tango.errors import CheckpointError, MissingSignalError, UnsupportedModelError
from tango.models.checkpoint import check_config, check_config_file, check_weight_files, read_json, reading, some
from tango.models.frame_batches import FrameRows, frame_batches
from tango.models.loading import choose_device
from tango.models.processors.llava import resize_frames
from tango.models.weights import check_finite
from tango.ops.device import to_device
from tango.ops.saliency import TowerBlock, block_signals, saliency_function

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROJECTIONS = {"q": ("q_proj", "query"), "k": ("k_proj", "key")}  # names in transformers' vision towers
_FIELDS = (Signal.SALIENCY | Signal.KEYS | Signal.FRAME_EMBEDS).fields


class BareTower:
    """Encodes frames as a grid of the tower's own patches; nothing is pooled or projected.

    Features are the tower's last hidden states. "p-attn" is the attention of the CLS token or, in a tower without one,
    of the mean query. Frames are resized to a square of the size that `preprocessor_config.json` names (else the
    config's image size) and normalised by its mean and deviation (else 0.5).

    Args:
        folder: `config.json` and safetensors of a tower that `transformers.AutoModel` builds, such as DINOv2's, with
            queries and keys in layers of their own.
    Raises:
        CheckpointError: files are missing, damaged or another model's.
        UnsupportedModelError: it is no such tower.
    """

    default_num_frames = 32

    def __init__(self, folder: str | Path, *, saliency: str = "p-attn", device: str | None = None):
        saliency_function(saliency)
        self.folder, self.saliency = Path(folder), saliency
        self.model = _load(self.folder).to(choose_device(device)).eval()
        config, settings = self.model.config, self.folder / "preprocessor_config.json"
        fields = read_json(settings) if settings.is_file() else {}
        self._side = _side(self.folder, fields.get("crop_size") or fields.get("size") or config.image_size)
        self._mean, self._deviation = (fields.get(f"image_{name}", [0.5] * 3) for name in ("mean", "std"))
        self.grid = (self._side // config.patch_size,) * 2  # (H, W)
        self._layers = _projections(self.folder, self.model)
        takes = inspect.signature(self.model.forward).parameters
        resized = self._side != config.image_size and "interpolate_pos_encoding" in takes  # DINOv2's needs no telling
        self._options = {"interpolate_pos_encoding": True} if resized else {}
        with reading(self.folder), torch.inference_mode():
            hidden = self._run(torch.zeros(1, 3, self._side, self._side))[0]
        self._prefix = hidden.shape[1] - self.grid[0] * self.grid[1]  # 1: a CLS token
        if self._prefix not in (0, 1):
            raise UnsupportedModelError(
                f"{self.folder}: {hidden.shape[1]} states for {self.grid} patches; expected one for each, or one more"
            )

    def check(self, needs: Signal, method: str) -> None:
        """Refuse a method that needs a signal this tower cannot supply.

        Raises:
            MissingSignalError: the method needs frame embeddings, and there is no CLS token.
        """
        if Signal.FRAME_EMBEDS in needs and not self._prefix:
            raise MissingSignalError(
                f"{method} needs frame embeddings, which a tower without a CLS token does not give"
            )

    @torch.inference_mode()
    def encode(self, video: Video, wants: Signal) -> VisualTokens:
        """The visual tokens of a video, with the wanted signals."""
        frames, config = video.frames, self.model.config
        rows = FrameRows(len(frames))
        patches = [self.grid[0] * self.grid[1]] * len(frames)
        for batch in frame_batches(patches, config.hidden_size, self.model.dtype, self.model.device):
            pixels = resize_frames(frames[batch], (self._side, self._side)) / 255
            mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (self._mean, self._deviation))
            rows.add(**self._rows_of((pixels - mean) / deviation, wants))
        fields: dict[str, Any] = {name: rows.get(name) for name in ("features", *_FIELDS)}
        return VisualTokens(grid=self.grid, timestamps_s=video.timestamps_s, **fields)

    def _rows_of(self, pixels: Float[Tensor, "T 3 h w"], wants: Signal) -> dict[str, Tensor]:
        """Features and signals of a batch of frames."""
        hidden, projected = self._run(pixels)
        heads = self.model.config.num_attention_heads
        block = TowerBlock(
            grid=self.grid,
            hidden=hidden[:, self._prefix :],
            project=lambda name: projected[name].unflatten(-1, (heads, -1)).transpose(1, 2),
            scale=(projected["q"].shape[-1] // heads) ** -0.5,
            pool=lambda x: x,
            pooling_query="cls" if self._prefix else "mean",
            cls=hidden[:, 0] if self._prefix else None,
        )
        return {"features": block.hidden, **block_signals(block, wants, self.saliency)}

    def _run(self, pixels: Float[Tensor, "T 3 h w"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The last hidden states, and queries and keys of the last block before they are split into heads."""
        projected: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output, name=name: projected.update({name: output}))
            for name, layer in self._layers.items()
        ]
        try:
            moved = to_device(pixels, self.model.device).to(self.model.dtype)
            return self.model(pixel_values=moved, **self._options).last_hidden_state, projected
        finally:
            for hook in hooks:
                hook.remove()


def _load(folder: Path) -> PreTrainedModel:
    """Load the tower in float32, from safetensors alone, with every weight from the checkpoint."""
    from transformers import AutoConfig, AutoModel

    if not folder.is_dir():
        raise CheckpointError(f"no vision tower at {str(folder)!r}: expected a folder with config.json")
    check_config_file(folder)
    with reading(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_config(folder / "config.json", config)
    kind, needed = config.model_type, ("image_size", "patch_size", "hidden_size", "num_hidden_layers")
    if not all(isinstance(getattr(config, name, None), int) for name in needed):
        raise UnsupportedModelError(f"{folder} is no vision tower but {kind!r}; its config lacks {', '.join(needed)}")
    check_weight_files(folder)
    with reading(folder):
        model, info = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"cannot load {folder}: {len(missing)} weights are missing: {some(missing)}")
    check_finite(folder, model)
    return model


def _projections(folder: Path, model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers that make queries ("q") and keys ("k") in the last block."""
    depth = model.config.num_hidden_layers
    blocks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    last = [] if not blocks else [(name.rpartition(".")[2], m) for name, m in blocks[0][-1].named_modules()]
    found = {kind: [m for name, m in last if name in names] for kind, names in _PROJECTIONS.items()}
    if any(len(layers) != 1 for layers in found.values()):
        raise UnsupportedModelError(
            f"{folder} ({model.config.model_type}) is no vision tower whose blocks have layers of their own for "
            f"queries and keys ({', '.join(' or '.join(names) for names in _PROJECTIONS.values())})"
        )
    return {kind: layers[0] for kind, layers in found.items()}


def _side(folder: Path, size: object) -> int:
    """The side of a frame in pixels, from any of the forms in which processors write it."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if type(size) is not int or not 1 <= size <= 10_000:
        raise CheckpointError(f"cannot read the size of frames in {folder}: got {size!r}, expected a number of pixels")
    return size
