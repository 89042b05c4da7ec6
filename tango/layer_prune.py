"""Pruning inside the LLM: at the input of one decoder layer, visual tokens leave the prompt for the layers that follow.

Stock decoders stay as they are; hooks do the work while one `generate` or `forward` call runs:

* The layer before gives the attention row of the prompt's last token, computed again from its queries and keys; no
  attention matrix is formed and no attention implementation is forced.
* At the pruned layer the kept rows are gathered. Rotations and masks of that layer and of those after it are gathered
  alike, so tokens keep their positions; each layer's cache simply holds what the layer has seen.
* After the final norm, states are spread to the prompt's full length, so logits and labels keep their shapes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tango.errors import UnsupportedModelError
from tango.methods import LayerPruner
from tango.ops.flops import check_layer, mean_retention_ratio


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """Pruning inside the LLM: visual tokens, newlines included, that reached the layer and that stayed.

    `mean_retention_ratio` is the fraction of all visual tokens that enter a layer, averaged over the LLM's layers.
    """

    method: str
    layer: int
    tokens_before: int
    tokens_after: int
    mean_retention_ratio: float


@dataclass(kw_only=True)
class LayerRecord:
    """What a pruned layer did: visual tokens of each prompt that reached it and that stayed, newlines included."""

    method: str
    layer: int
    num_layers: int
    tokens_before: tuple[int, ...] = ()
    tokens_after: tuple[int, ...] = ()

    def stats(self, retention_ratio: float) -> LayerStats:
        """Sums over the batch; `retention_ratio` is the fraction of visual tokens that entered the LLM."""
        before, after = sum(self.tokens_before), sum(self.tokens_after)
        mean = mean_retention_ratio(
            retention_ratio,
            num_layers=self.num_layers,
            layer=self.layer,
            layer_retention_ratio=after / before,
        )
        return LayerStats(
            method=self.method,
            layer=self.layer,
            tokens_before=before,
            tokens_after=after,
            mean_retention_ratio=mean,
        )


@contextmanager
def layer_pruning(
    decoder: nn.Module,
    layer_pruner: LayerPruner,
    *,
    is_visual: Tensor,
    attention_mask: Tensor,
    queries: Tensor | None = None,
) -> Iterator[LayerRecord]:
    """Prune at the input of layer `layer_pruner.layer` during one `generate` or `forward` call.

    Works with and without a cache, dynamic or static, for beams, several samples per prompt and assisted decoding.
    Without a cache every step selects anew, and arrives at the same tokens because only the prompt is looked at.
    Calls from other threads are left alone; nothing stays behind. Captured hidden states of the later layers are
    short, and a cache returned by `forward` fits later calls only if no row was padded.

    Args:
        decoder: a text model with `layers` and `norm`; see `Adapter.decoder`.
        is_visual: visual tokens of every prompt, newlines included, (B, S).
        attention_mask: zeros are padding, (B, S).
        queries: column of each prompt's last token, (B,), if labels follow it; None: the last column.
    Raises:
        BudgetError: the decoder has no such layer.
        UnsupportedModelError: chunked prefill, gradient checkpointing, or masks of an unknown form (on the call).
    """
    check_layer(layer_pruner.layer, len(decoder.layers))  # type: ignore[arg-type]
    run = _Run(decoder, layer_pruner, is_visual.bool(), attention_mask.bool(), queries)
    with ExitStack() as stack:
        for handle in run.hook():
            stack.callback(handle.remove)
        yield run.record


def last_prompt_columns(is_visual: Tensor, labels: Tensor) -> Tensor:
    """Column of each row's last prompt token (B,): before the first labelled token, but not before a video's end."""
    S = labels.shape[1]
    columns = torch.arange(S, device=labels.device)
    first_label = columns.masked_fill(labels == -100, S).amin(1)
    last_video = columns.masked_fill(~is_visual, 0).amax(1)
    return torch.maximum(first_label - 1, last_video)


def attention_of_row(
    queries: Tensor, keys: Tensor, rotation: tuple[Tensor, Tensor], rows: Tensor, attended: Tensor, scale: float
) -> Tensor:
    """Causal attention that one token of each prompt gives to all others, averaged over heads, (B, S), float32.

    Args:
        queries: before rotation, (B, n, H, d), n >= S; keys: the same with the G heads that have keys.
        rotation: cosines and sines, (B or 1, n, d).
        rows: the attending token of each prompt, (B,).
        attended: False for padding, (B, S).
    """
    B, S = attended.shape
    batch = torch.arange(B, device=rows.device)
    cos, sin = (x.expand(B, -1, -1).float() for x in rotation)
    q = _rotate(queries[batch, rows].float(), cos[batch, rows, None], sin[batch, rows, None])
    k = _rotate(keys[:, :S].float(), cos[:, :S, None], sin[:, :S, None])
    scores = torch.einsum("bgrd,bsgd->bgrs", q.unflatten(1, (k.shape[2], -1)), k) * scale
    seen = attended & (torch.arange(S, device=rows.device) <= rows[:, None])
    return scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1).mean((1, 2))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class _Run:
    """State of one call. A "prompt call" is a forward through the decoder that holds the whole prompt.

    B prompts of S columns make `rows` = B * repeats sequences of `length` >= S tokens; S' columns of a prompt stay.
    """

    def __init__(self, decoder: Any, pruner: LayerPruner, is_visual: Tensor, attended: Tensor, queries: Tensor | None):
        self.decoder, self.pruner, self.attended = decoder, pruner, attended
        self.others = attended & ~is_visual
        self.num_others: list[int] = self.others.sum(1).tolist()
        self.places = [row.nonzero()[:, 0] for row in is_visual & attended]  # of every prompt's visual tokens
        self.queries = torch.full_like(attended[:, 0], attended.shape[1] - 1, dtype=torch.long)
        if queries is not None:
            self.queries = queries.to(attended.device)
        self.flash = "flash" in str(decoder.config._attn_implementation)
        self.record = LayerRecord(method=pruner.name, layer=pruner.layer, num_layers=len(decoder.layers))
        self.owner = threading.get_ident()
        self.cache: Any = None  # of the prompt that has passed
        self.prompt_call = False
        self.rows = self.length = 0
        self.captured: dict[str, Any] = {}  # queries, keys and rotation of the layer before
        self.keep: Tensor  # (rows, S), True for what stays
        self.columns: Tensor  # (rows, S'), what stays; filled up on the left
        self.real: Tensor | None  # (rows, S'), False where filled up; None: nowhere
        self.changes: dict[str, Any] = {}  # arguments of the layers that see the short prompt, in the running call

    def hook(self) -> Iterator[Any]:
        """Register the hooks one by one, so that those that exist can be removed if one fails."""
        layers, K = self.decoder.layers, self.pruner.layer
        attention = layers[K - 1].self_attn
        yield self.decoder.register_forward_pre_hook(self._guard(self._begin), with_kwargs=True)
        yield attention.register_forward_pre_hook(self._guard(self._before_attention), with_kwargs=True)
        for name in ("q", "k"):
            # Families that normalise queries and keys do so before rotating them.
            module = getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_proj")
            yield module.register_forward_hook(self._guard(self._capture(name)))
        yield layers[K].register_forward_pre_hook(self._guard(self._at_layer), with_kwargs=True)
        for layer in layers[K + 1 :]:
            yield layer.register_forward_pre_hook(self._guard(self._after_layer), with_kwargs=True)
        yield self.decoder.norm.register_forward_hook(self._guard(self._spread))

    def _guard(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: hook(*args) if threading.get_ident() == self.owner else None

    def _begin(self, decoder: Any, _args: tuple, kwargs: dict[str, Any]) -> None:
        """At the decoder's door: is this the prompt, or decoding after it?"""
        inputs = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        self.rows, self.length = inputs.shape[:2]
        self.prompt_call = cache is None or cache is not self.cache
        if not self.prompt_call:
            return
        self.cache = cache
        K, S = self.pruner.layer, self.attended.shape[1]
        if self.length < S or (cache is not None and int(cache.get_seq_length()) > 0):
            raise UnsupportedModelError(
                f"pruning at layer {K} needs the prompt of {S} tokens in one forward call, got {self.length}; "
                "leave out prefill_chunk_size, and caches that hold a part of the prompt"
            )
        if decoder.training and getattr(decoder.layers[K], "gradient_checkpointing", False):
            raise UnsupportedModelError("pruning at a layer does not work with gradient checkpointing; switch it off")
        if len(kwargs.get("deepstack_visual_embeds") or ()) > K:
            count = len(kwargs["deepstack_visual_embeds"])
            raise UnsupportedModelError(f"this model feeds layers up to {count} with features; prune there or later")

    def _before_attention(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not self.prompt_call:
            return None
        self.captured["rotation"] = kwargs["position_embeddings"]
        if not self.pruner.noncausal_layer:
            return None
        return args, {**kwargs, **self._noncausal(kwargs)}

    def _capture(self, name: str) -> Callable[..., None]:
        def capture(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            if self.prompt_call:
                self.captured[name] = output.detach()

        return capture

    def _at_layer(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Input of the pruned layer: select and merge, then do as for the layers that follow."""
        self.changes = {}
        if self.prompt_call:
            args = (self._select(args[0]), *args[1:])
            columns = self._extended(self.length)[..., None]
            self.changes["position_embeddings"] = tuple(
                x.expand(self.rows, -1, -1).gather(1, columns.expand(-1, -1, x.shape[-1]))
                for x in kwargs["position_embeddings"]
            )
            self.changes["position_ids"] = None  # only read to recognise packed sequences, which gaps look like
        self.changes["attention_mask"] = self._short_mask(kwargs, args[0].device)
        return self._after_layer(module, args, kwargs)

    def _after_layer(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, **self.changes}

    def _select(self, hidden: Tensor) -> Tensor:
        """Let the pruner choose for every prompt; return the states (rows, S' + rest, D) that stay."""
        B, S = self.attended.shape
        repeats = self.rows // B  # beams and samples agree on the prompt, so the first decides
        attention = self.decoder.layers[self.pruner.layer - 1].self_attn
        q, k = (self.captured[x][::repeats].reshape(B, self.length, -1, attention.head_dim) for x in ("q", "k"))
        cos, sin = (x.expand(self.rows, -1, -1)[::repeats] for x in self.captured["rotation"])
        received = attention_of_row(q, k, (cos, sin), self.queries, self.attended, attention.scaling)
        self.captured.clear()
        hidden, keep = hidden.clone(), self.others.clone()
        after = []
        for b, places in enumerate(self.places):
            if len(places):
                first = b * repeats
                states, chosen = self.pruner(hidden[first, places], received[b, places])
                hidden[first : first + repeats, places[chosen]] = states
                keep[b, places[chosen]] = True
            after.append(len(chosen) if len(places) else 0)
        self.record.tokens_before, self.record.tokens_after = tuple(map(len, self.places)), tuple(after)
        counts = [sum(pair) for pair in zip(self.num_others, after, strict=True)]
        columns = keep.byte().sort(dim=1, stable=True).indices[:, S - max(counts) :]
        self.keep, self.columns = (x.repeat_interleave(repeats, dim=0) for x in (keep, columns))
        self.real = None if min(counts) == max(counts) else self.keep.gather(1, self.columns)
        return hidden.gather(1, self._extended(self.length)[..., None].expand(-1, -1, hidden.shape[-1]))

    def _extended(self, total: int) -> Tensor:
        """The columns that stay, and after them those from S to `total`: candidates, new tokens, unused cache."""
        S = self.attended.shape[1]
        rest = torch.arange(S, total, device=self.columns.device)
        return torch.cat([self.columns, rest.expand(self.rows, -1)], dim=1)

    def _short_mask(self, kwargs: dict[str, Any], device: torch.device) -> Tensor | None:
        """The mask of the short sequences, in the form that the long ones have it: 4-D, 2-D or none."""
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        size = 0 if cache is None else getattr(cache.layers[0], "max_cache_len", 0)
        if mask is None:
            if self.real is None:
                return None
            seen = self.length if cache is None else int(cache.layers[0].get_seq_length())
            mask = self._causal_mask(seen, seen - self.length, device)
        if not isinstance(mask, Tensor):
            raise UnsupportedModelError(f"pruning at a layer cannot read masks of type {type(mask).__name__}")
        mask = mask.expand(self.rows, *mask.shape[1:])
        columns = self._extended(mask.shape[-1])
        real = None if self.real is None else F.pad(self.real, (0, columns.shape[1] - self.real.shape[1]), value=True)
        if mask.ndim == 2:
            mask = mask.gather(1, columns)
            return mask if real is None else mask * real
        heads, (shown, hidden) = mask.shape[1], _mask_values(mask)
        if self.prompt_call:
            kept_rows = columns[:, : self.columns.shape[1] + self.length - self.attended.shape[1]]
            mask = mask.gather(2, kept_rows[:, None, :, None].expand(-1, heads, -1, mask.shape[-1]))
        mask = mask.gather(3, columns[:, None, None].expand(-1, heads, mask.shape[2], -1))
        if real is not None:
            mask = mask.masked_fill(~real[:, None, None], hidden)
            if self.prompt_call:  # rows that fill up see themselves: seeing nothing, some kernels answer NaN
                own = torch.eye(*mask.shape[2:], dtype=torch.bool, device=mask.device)
                mask = mask.masked_fill(own & ~real[:, None, : mask.shape[2], None], shown)
        return F.pad(mask, (0, max(size - mask.shape[-1], 0)), value=hidden)

    def _noncausal(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments for attention without a causal mask among the tokens of the prompt."""
        B, S = self.attended.shape
        if self.flash:
            if self.length > S:
                raise UnsupportedModelError("noncausal_layer does not work with flash attention and candidate tokens")
            return {"is_causal": False}
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if mask is None:
            size = self.length if cache is None else getattr(cache.layers[0], "max_cache_len", self.length)
            mask = self._causal_mask(size, 0, kwargs["hidden_states"].device)
        mask = mask.expand(self.rows, *mask.shape[1:]).clone()
        seen = self.attended.repeat_interleave(self.rows // B, dim=0)[:, None, None]
        shown, hidden = _mask_values(mask)
        mask[..., :S, :S] = torch.full_like(mask[..., :S, :S], hidden).masked_fill(seen, shown)
        return {"attention_mask": mask}

    def _causal_mask(self, columns: int, past: int, device: torch.device) -> Tensor:
        if self.flash:
            return torch.ones(self.rows, columns, dtype=torch.bool, device=device)
        return torch.ones(1, 1, self.length, columns, dtype=torch.bool, device=device).tril(past)

    def _spread(self, _module: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
        """Back to the full length. A dropped token's state is that of the last kept one before it, from which the
        next token is predicted."""
        if not self.prompt_call:
            return None
        keep = F.pad(self.keep, (0, self.length - self.keep.shape[1]), value=True)
        last = keep.cumsum(1)
        index = (last - last[:, -1:] + output.shape[1] - 1).clamp_min(0)
        return output.gather(1, index[..., None].expand(-1, -1, output.shape[-1]))


def _mask_values(mask: Tensor) -> tuple[float | bool, float | bool]:
    """What a 4-D mask holds for visible and for hidden columns."""
    return (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
