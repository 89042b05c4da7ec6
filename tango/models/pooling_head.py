"""The attention-pooling head of SigLIP, which gives "p-attn" saliency and one vector per frame.

LLaVA checkpoints drop this head, so it comes from the SigLIP checkpoint that their towers started from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from tango.annotations import Float
from tango.errors import CheckpointError, UnsupportedModelError
from tango.fingerprints import of_content
from tango.models.checkpoint import check_weight_files, read_json, reading, some
from tango.models.hub import resolve_files
from tango.ops.attention import fold_probe, probe_attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DEFAULT_SIGLIP = "google/siglip-so400m-patch14-384"
# Width, patch size and image size of a tower -> the SigLIP that such towers started from.
_SIGLIPS = {(1152, 14, 384): DEFAULT_SIGLIP, (768, 16, 512): "google/siglip-base-patch16-512"}
_PREFIXES = ("vision_model.", "", "vision_model.vision_model.", "model.vision_tower.")


def siglip_of(vision: PretrainedConfig) -> str | None:
    """The SigLIP that a tower of this config started from, by its sizes; None: no known one."""
    return _SIGLIPS.get((vision.hidden_size, vision.patch_size, vision.image_size))


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolingHead:
    """Weights of the head, with the constant query folded into the key projection.

    Source: appendix B.1 of arXiv:2604.09547. Like the release, this applies SigLIP's own last LayerNorm and head to the
    features of the LLaVA-tuned tower, one block earlier than SigLIP does.
    """

    folded_probe: Float[Tensor, "heads P"]
    norm: tuple[Tensor, Tensor]  # weight and bias of SigLIP's post_layernorm
    values: tuple[Tensor, Tensor]  # weight (P, P) and bias of the value projection
    output: tuple[Tensor, Tensor]
    mlp_norm: tuple[Tensor, Tensor]
    mlp: tuple[Tensor, Tensor, Tensor, Tensor]
    eps: float
    digest: str  # fingerprint of the weights as they were read

    @property
    def width(self) -> int:
        """P, the width of the vision tower that this head fits."""
        return self.folded_probe.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.folded_probe.device

    def to(self, device: torch.device) -> PoolingHead:
        """The head on another device; itself if it is there already."""
        if self.device == device:
            return self
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else tuple(t.to(device) for t in value)
            for name, value in vars(self).items()
            if name not in ("eps", "digest")
        }
        return replace(self, **moved)

    def saliency(self, hidden: Float[Tensor, "T N P"]) -> Float[Tensor, "T N"]:
        """Attention that each patch gets from the pooling query; it sums to 1 over the patches of a frame."""
        return probe_attention(hidden, self.folded_probe, *self.norm, eps=self.eps)

    def frame_embeds(self, hidden: Float[Tensor, "T N P"]) -> Float[Tensor, "T P"]:
        """The head's output, one vector per frame.

        Values are linear, so patches are pooled per head before the value projection: t frames, n patches, h heads.
        """
        normed = F.layer_norm(hidden.float(), hidden.shape[-1:], *self.norm, self.eps)
        weights = (normed @ self.folded_probe.T).softmax(dim=1)
        pooled = torch.einsum("tnh,tnp->thp", weights, normed)
        heads, P = self.folded_probe.shape
        attended = torch.einsum("thp,hdp->thd", pooled, self.values[0].view(heads, P // heads, P)).flatten(1)
        attended = F.linear(attended + self.values[1], *self.output)
        inner = F.linear(F.layer_norm(attended, (P,), *self.mlp_norm, self.eps), *self.mlp[:2])
        return attended + F.linear(F.gelu(inner, approximate="tanh"), *self.mlp[2:])

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, local_files_only: bool = False) -> PoolingHead:
        """Read the head from a SigLIP checkpoint: a hub id, or a local folder with safetensors.

        Raises:
            TangoError: there is no such checkpoint, or the hub cannot be reached.
            CheckpointError: the checkpoint's files are damaged, or a part of the head is missing.
            UnsupportedModelError: the checkpoint holds no pooling head.
        """
        config_file, *weight_files = resolve_files(path_or_id, local_files_only=local_files_only)
        config = read_json(config_file)
        config = config.get("vision_config", config)
        if not isinstance(config, dict):
            raise CheckpointError(f"cannot read {config_file}: vision_config must be an object, got {config!r}")
        check_weight_files(config_file.parent)
        tensors: dict[str, Tensor] = {}
        for file in weight_files:
            with reading(file), safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118 (a safetensors handle is not a dictionary)
                    name = next((key.removeprefix(p) for p in _PREFIXES if p and key.startswith(p)), key)
                    if name.startswith(("head.", "post_layernorm.")):
                        tensors[name] = weights.get_tensor(key).float()
        if "head.probe" not in tensors:
            raise UnsupportedModelError(
                f"{path_or_id} holds no SigLIP attention-pooling head (vision_model.head.*); expected a full SigLIP "
                f"checkpoint such as {DEFAULT_SIGLIP}"
            )
        num_heads, eps = config.get("num_attention_heads", 12), config.get("layer_norm_eps", 1e-6)
        try:
            return cls.from_tensors(tensors, num_heads=num_heads, eps=eps)
        except CheckpointError as error:
            raise CheckpointError(f"cannot load the pooling head of {path_or_id}: {error}") from error

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], *, num_heads: int, eps: float) -> PoolingHead:
        """Build the head from `head.*` and `post_layernorm.*` tensors named as in transformers.

        Raises:
            CheckpointError: a tensor is missing, not finite or of another shape, or the width is no multiple of
                `num_heads`.
        """
        _check(tensors, num_heads, eps)
        weight, bias = tensors["head.attention.in_proj_weight"], tensors["head.attention.in_proj_bias"]
        P = weight.shape[1]
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(("head.", "post_layernorm."))}

        def pair(name: str) -> tuple[Tensor, Tensor]:
            return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

        return cls(
            folded_probe=fold_probe(tensors["head.probe"].flatten(), weight, bias, num_heads),
            norm=pair("post_layernorm"),
            values=(weight[2 * P :], bias[2 * P :]),
            output=pair("head.attention.out_proj"),
            mlp_norm=pair("head.layernorm"),
            mlp=(*pair("head.mlp.fc1"), *pair("head.mlp.fc2")),
            eps=eps,
            digest=of_content([f"{num_heads} {eps}", own]),
        )


def _check(tensors: dict[str, Tensor], num_heads: object, eps: object) -> None:
    P = tensors["head.probe"].numel() if "head.probe" in tensors else 0
    inner = len(tensors["head.mlp.fc1.bias"]) if "head.mlp.fc1.bias" in tensors else 0
    attention, layers = "head.attention", ("post_layernorm", "head.layernorm")
    expected: dict[str, tuple[int, ...]] = {
        f"{attention}.in_proj_weight": (3 * P, P), f"{attention}.in_proj_bias": (3 * P,),
        f"{attention}.out_proj.weight": (P, P), f"{attention}.out_proj.bias": (P,),
        "head.mlp.fc1.weight": (inner, P), "head.mlp.fc1.bias": (inner,),
        "head.mlp.fc2.weight": (P, inner), "head.mlp.fc2.bias": (P,),
        **{f"{layer}.{part}": (P,) for layer in layers for part in ("weight", "bias")},
    }  # fmt: skip
    missing = [name for name in ("head.probe", *expected) if name not in tensors]
    if missing:
        raise CheckpointError(f"{len(missing)} of its weights are missing: {some(missing)}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"{name} is of shape {tuple(tensors[name].shape)}, expected {shape}")
    held = [name for name in ("head.probe", *expected) if tensors[name].device.type != "meta"]  # a shape has no values
    infinite = [name for name in held if not tensors[name].isfinite().all()]
    if infinite:
        raise CheckpointError(f"{len(infinite)} of its weights are NaN or infinite: {some(infinite)}")
    if type(num_heads) is not int or num_heads < 1 or P % num_heads or not isinstance(eps, float):
        raise CheckpointError(
            f"num_attention_heads must divide the width {P} and layer_norm_eps be a number, got {num_heads!r}, {eps!r}"
        )
