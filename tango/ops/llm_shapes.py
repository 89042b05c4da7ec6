"""Shapes of language models, the published ones by name, and what a video puts into their prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from tango.errors import UnsupportedModelError
from tango.ops import flops

Newlines = Literal["none", "video", "row"]  # one at the end of each video, or of each row of a frame


@dataclass(frozen=True, kw_only=True)
class Experts:
    """What stands in place of a layer's MLP: a router sends every token to `active` of `count` experts."""

    count: int
    active: int
    width: int  # of one expert
    shared_width: int = 0  # of what all tokens pass besides
    shared_gate: bool = False  # whether a token's own weight scales the latter


@dataclass(frozen=True, kw_only=True)
class DeltaNet:
    """What stands in place of a layer's attention; the fields are as in `delta_net_flops`."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    kernel: int


@dataclass(frozen=True, kw_only=True)
class Llm:
    """A language model: the numbers from which its FLOPs and the size of its cache follow."""

    width: int
    mlp_width: int  # of the layers without experts
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128
    experts: Experts | None = None
    dense_layers: tuple[int, ...] = ()  # those without experts, where there are experts
    delta_net: DeltaNet | None = None
    delta_layers: tuple[int, ...] = ()  # those with a delta net
    gated_attention: bool = False  # whether queries come with a gate of their width

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers with keys and values."""
        return tuple(i for i in range(self.num_layers) if i not in self.delta_layers)

    def layer_flops(self, layer: int, num_tokens: int) -> int:
        """FLOPs of one layer for a prompt."""
        mlp_width, gates, experts = self.mlp_width, 0, self.experts
        if experts is not None and layer not in self.dense_layers:
            mlp_width = experts.active * experts.width + experts.shared_width
            gates = experts.count + experts.shared_gate
        if self.delta_net is not None and layer in self.delta_layers:
            own = asdict(self.delta_net)
            return flops.delta_net_flops(num_tokens, width=self.width, mlp_width=mlp_width, gates=gates, **own)
        return flops.layer_flops(
            num_tokens,
            width=self.width,
            mlp_width=mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            gates=gates + self.gated_attention * self.num_heads * self.head_dim,
        )

    def prefill_flops(self, tokens_per_layer: Sequence[int]) -> int:
        """FLOPs of all layers, given the tokens of a prompt that enter each."""
        return sum(self.layer_flops(i, count) for i, count in enumerate(tokens_per_layer))

    def step_flops(self, tokens_per_layer: Sequence[int]) -> int:
        """FLOPs of all layers for one more token, given how many are in each layer's cache."""
        seen = sum(tokens_per_layer[i] - 1 for i in self.attention_layers)
        return self.prefill_flops([1] * self.num_layers) + 4 * seen * self.num_heads * self.head_dim

    def kv_cache_bytes(self, tokens_per_layer: Sequence[int], *, bytes_per_number: int = 2) -> int:
        """Bytes of keys and values of one prompt; a delta net has none, and its state does not grow."""
        return flops.kv_cache_bytes(
            [tokens_per_layer[i] for i in self.attention_layers],
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            bytes_per_number=bytes_per_number,
        )

    @property
    def idle_weights(self) -> int:
        """Numbers in the experts that one token does not pass."""
        if (experts := self.experts) is None:
            return 0
        layers = self.num_layers - len(self.dense_layers)
        return layers * (experts.count - experts.active) * 3 * self.width * experts.width

    @property
    def note(self) -> str | None:
        """What is counted besides, or in place of, attention and an MLP in every layer; None: nothing."""
        notes = []
        if (experts := self.experts) is not None:
            shared = f", and the {experts.shared_width} channels that all tokens share" if experts.shared_width else ""
            layers = f" of {self.num_layers - len(self.dense_layers)} layers" if self.dense_layers else ""
            notes.append(f"{experts.active} of {experts.count} experts{layers} a token{shared}")
        if self.delta_layers:
            notes.append(
                f"linear attention in {len(self.delta_layers)} of {self.num_layers} layers (one state, whose products "
                "count token by token; keys and values only in the others)"
            )
        return "; ".join(notes) or None


@dataclass(frozen=True, kw_only=True)
class Shape(Llm):
    """A language model and what a video puts into its prompt."""

    tokens_per_step: int  # visual tokens of a frame, or of frames that are encoded together
    frames_per_step: int = 1
    newlines: Newlines = "none"
    default_frames: int = 32

    def num_newlines(self, steps: int, kept: int) -> float:
        """Newlines beside `kept` visual tokens; where rows without any lose theirs, the mean for random positions."""
        if self.newlines != "row":
            return float(self.newlines == "video")
        N, k = self.tokens_per_step, round(kept / steps)
        side = math.isqrt(N)
        return steps * side * (1 - math.comb(N - side, k) / math.comb(N, k))


_DELTA_NETS = ("qwen3_5_text", "qwen3_5_moe_text")  # text models whose linear attention is a gated delta net

_QWEN2 = {
    "0.5b": partial(Shape, width=896, mlp_width=4864, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64),
    "7b": partial(Shape, width=3584, mlp_width=18944, num_layers=28, num_heads=28, num_kv_heads=4),
    "72b": partial(Shape, width=8192, mlp_width=29568, num_layers=80, num_heads=64, num_kv_heads=8),
}
_QWEN25 = {
    "3b": partial(Shape, width=2048, mlp_width=11008, num_layers=36, num_heads=16, num_kv_heads=2),
    "7b": _QWEN2["7b"],
    "32b": partial(Shape, width=5120, mlp_width=27648, num_layers=64, num_heads=40, num_kv_heads=8),
    "72b": _QWEN2["72b"],
}
_QWEN3 = {
    "2b": partial(Shape, width=2048, mlp_width=6144, num_layers=28, num_heads=16, num_kv_heads=8),
    "4b": partial(Shape, width=2560, mlp_width=9728, num_layers=36, num_heads=32, num_kv_heads=8),
    "8b": partial(Shape, width=4096, mlp_width=12288, num_layers=36, num_heads=32, num_kv_heads=8),
    "32b": partial(Shape, width=5120, mlp_width=25600, num_layers=64, num_heads=64, num_kv_heads=8),
    "30b-a3b": partial(
        Shape, width=2048, mlp_width=6144, num_layers=48, num_heads=32, num_kv_heads=4,
        experts=Experts(count=128, active=8, width=768),
    ),
    "235b-a22b": partial(
        Shape, width=4096, mlp_width=12288, num_layers=94, num_heads=64, num_kv_heads=4,
        experts=Experts(count=128, active=8, width=1536),
    ),
}  # fmt: skip


def _hybrid(**fields: Any) -> partial[Shape]:
    """Qwen3.5: every fourth layer has attention, the others delta nets."""
    delta_layers = tuple(i for i in range(fields["num_layers"]) if i % 4 != 3)
    delta_net = DeltaNet(num_key_heads=16, num_value_heads=32, key_dim=128, value_dim=128, kernel=4)
    hybrid = partial(Shape, num_heads=16, head_dim=256, gated_attention=True, delta_net=delta_net)
    return partial(hybrid, **fields, delta_layers=delta_layers)


_QWEN35 = {
    "9b": _hybrid(width=4096, mlp_width=12288, num_layers=32, num_kv_heads=4),
    "35b-a3b": _hybrid(
        width=2048, mlp_width=0, num_layers=40, num_kv_heads=2,
        experts=Experts(count=256, active=8, width=512, shared_width=512, shared_gate=True),
    ),
}  # fmt: skip
_SMOLLM2 = {
    "256m": partial(Shape, width=576, mlp_width=1536, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64),
    "500m": partial(Shape, width=960, mlp_width=2560, num_layers=32, num_heads=15, num_kv_heads=5, head_dim=64),
    "2.2b": partial(Shape, width=2048, mlp_width=8192, num_layers=24, num_heads=32, num_kv_heads=32, head_dim=64),
}
_GLM = {
    "4.1v-9b": partial(Shape, width=4096, mlp_width=13696, num_layers=40, num_heads=32, num_kv_heads=2),
    "4.5v-106b": partial(
        Shape, width=4096, mlp_width=10944, num_layers=46, num_heads=96, num_kv_heads=8, dense_layers=(0,),
        experts=Experts(count=128, active=8, width=1408, shared_width=1408),
    ),
}  # fmt: skip
_VIDEO = {"7b": _QWEN2["7b"], "72b": _QWEN2["72b"]}
# The models' names count the tower, too; InternVL3's 9B and InternVL3.5's 20B have decoders of other families.
_INTERNVL3 = {
    "1b": _QWEN2["0.5b"],
    "2b": partial(Shape, width=1536, mlp_width=8960, num_layers=28, num_heads=12, num_kv_heads=2),
    "8b": _QWEN2["7b"],
    "14b": partial(Shape, width=5120, mlp_width=13824, num_layers=48, num_heads=40, num_kv_heads=8),
    "38b": _QWEN25["32b"],
    "78b": _QWEN2["72b"],
}
_INTERNVL35 = {
    "1b": partial(Shape, width=1024, mlp_width=3072, num_layers=28, num_heads=16, num_kv_heads=8),
    **{size: _QWEN3[size] for size in ("2b", "4b", "8b", "30b-a3b")},
    "14b": partial(Shape, width=5120, mlp_width=17408, num_layers=40, num_heads=40, num_kv_heads=8),
    "38b": _QWEN3["32b"],
    "241b-a28b": _QWEN3["235b-a22b"],
}
PUBLISHED_SHAPES = {
    **{f"llava-onevision-{size}": llm(tokens_per_step=196, newlines="video") for size, llm in _QWEN2.items()},
    **{
        f"llava-video-{size}": llm(tokens_per_step=169, newlines="row", default_frames=64)
        for size, llm in _VIDEO.items()
    },
    # frames of 448 x 448
    **{f"qwen2.5-vl-{size}": llm(tokens_per_step=256, frames_per_step=2) for size, llm in _QWEN25.items()},
    **{f"glm-{size}": llm(tokens_per_step=256, frames_per_step=2) for size, llm in _GLM.items()},
    **{f"qwen3-vl-{size}": llm(tokens_per_step=196, frames_per_step=2) for size, llm in _QWEN3.items()},
    **{
        f"smolvlm2-{size}": llm(tokens_per_step=81 if size == "2.2b" else 64, default_frames=64)
        for size, llm in _SMOLLM2.items()
    },
    **{f"qwen3.5-{size}": llm(tokens_per_step=196, frames_per_step=2) for size, llm in _QWEN35.items()},
    **{f"internvl3-{size}": llm(tokens_per_step=256) for size, llm in _INTERNVL3.items()},
    **{f"internvl3.5-{size}": llm(tokens_per_step=256) for size, llm in _INTERNVL35.items()},
}


def llm_of(config: Any) -> Llm:
    """The language model of a transformers config.

    Windows of sliding attention count as whole prompts.

    Raises:
        UnsupportedModelError: the layers are of a kind that Tango cannot count.
    """
    text = config.get_text_config()
    if vars(text).get("hidden_size_per_layer_input") is not None:
        raise UnsupportedModelError(
            f"FLOPs are counted for layers that are alike, which those of {text.model_type} are not"
        )
    layers = range(text.num_hidden_layers)
    kinds = list(getattr(text, "layer_types", None) or ["full_attention"] * len(layers))
    linear = tuple(i for i in layers if kinds[i] == "linear_attention")
    unknown = {*kinds} - {"full_attention", "sliding_attention", "linear_attention"}
    if unknown or (linear and text.model_type not in _DELTA_NETS):
        found = ", ".join(sorted(unknown or {"linear_attention"}))
        raise UnsupportedModelError(
            f"FLOPs of layers of {text.model_type} are not known: expected attention, or the linear attention of "
            f"{', '.join(_DELTA_NETS)}; got {found}"
        )
    experts = _experts(text)
    return Llm(
        width=text.hidden_size,
        mlp_width=getattr(text, "intermediate_size", None) or 0,
        num_layers=len(layers),
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        experts=experts,
        dense_layers=() if experts is None else tuple(_dense_layers(text)),
        delta_net=_delta_net(text) if linear else None,
        delta_layers=linear,
        gated_attention=text.model_type in _DELTA_NETS,
    )


def _experts(text: Any) -> Experts | None:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    count = next((count for name in names if (count := getattr(text, name, None))), 0)
    if not count:
        return None
    if (active := getattr(text, "num_experts_per_tok", None)) is None:
        raise UnsupportedModelError(
            f"FLOPs of {text.model_type} are not known: its config has experts, but no num_experts_per_tok"
        )
    width = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
    gated = getattr(text, "shared_expert_intermediate_size", None) or 0  # Qwen's: one, with a gate
    shared = gated or (getattr(text, "n_shared_experts", None) or 0) * width  # GLM's: several, without
    return Experts(count=count, active=active, width=width, shared_width=shared, shared_gate=gated > 0)


def _dense_layers(text: Any) -> Iterable[int]:
    first, named = getattr(text, "first_k_dense_replace", 0), getattr(text, "mlp_only_layers", None) or ()
    step = getattr(text, "decoder_sparse_step", 1)
    return (i for i in range(text.num_hidden_layers) if i < first or i in named or (i + 1) % step)


def _delta_net(text: Any) -> DeltaNet:
    return DeltaNet(
        num_key_heads=text.linear_num_key_heads,
        num_value_heads=text.linear_num_value_heads,
        key_dim=text.linear_key_head_dim,
        value_dim=text.linear_value_head_dim,
        kernel=text.linear_conv_kernel_dim,
    )
