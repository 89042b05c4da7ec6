"""Intra-LLM pruning: at the inputs of some decoder layers, visual tokens leave the prompt for all layers that follow.

The stock decoder stays as it is. While one `generate` or `forward` call runs, hooks do the work:

* The layer before hands its queries and keys to transformers' attention function, rotated as the family does it, and
  they are taken from there. If a method reads the pruned layer's own, that layer's attention is called ahead, at the
  layer's input, and stops there. Either way no attention matrix is formed, and any attention implementation will do.
* At a pruned layer the kept rows are gathered. The rotations and masks of this layer and of all later ones are gathered
  in the same way, so tokens keep their positions. Each layer's cache holds what the layer has seen.
* After the final norm, the states are spread to the prompt's full length, so logits and labels keep their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tango.containers import LayerTokens
from tango.errors import UnsupportedModelError
from tango.methods import LayerPruner
from tango.models.attention_tap import AttentionTap
from tango.models.calls import Call, cache_of
from tango.models.placement import device_of, is_sharded, weight_of
from tango.ops.flops import check_layer
from tango.runtime.layer_masks import Kept, noncausal_mask, short_mask
from tango.runtime.stats import LayerStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

_Arguments = dict[str, Any]  # keyword arguments of a module


class _Stop(Exception):
    """Ends a call of an attention module that has handed over its queries and keys."""


@dataclass(kw_only=True)
class LayerRecord:
    """What layer pruning did: how many visual tokens of each prompt entered the LLM, and how many each layer kept."""

    method: str
    num_layers: int
    entered: tuple[int, ...] = ()
    stayed: dict[int, tuple[int, ...]] = field(default_factory=dict)
    places: tuple[tuple[Tensor, Tensor], ...] = ()  # of the kept tokens: frame, and position in the frame

    def counts(self, prompt: int, layer: int) -> tuple[int, ...]:
        """For each layer before `layer`, how many visual tokens of one prompt ran through it."""
        counts = [self.entered[prompt]]
        for i in range(1, layer):
            counts.append(self.stayed[i][prompt] if i in self.stayed else counts[-1])
        return tuple(counts)

    def stats(self, retention_ratio: float) -> LayerStats:
        """Sum over the batch. `retention_ratio` is the fraction of all visual tokens that entered the LLM."""
        tokens = (sum(self.entered), *(sum(counts) for counts in self.stayed.values()))
        edges = (0, *self.stayed, self.num_layers)
        lengths = [b - a for a, b in pairwise(edges)]
        mean = sum(n * length for n, length in zip(tokens, lengths, strict=True)) / (tokens[0] * self.num_layers)
        return LayerStats(
            method=self.method,
            layers=tuple(self.stayed),
            tokens=tokens,
            mean_retention_ratio=retention_ratio * mean,
            places=self.places,
        )


@contextmanager
def layer_pruning(
    decoder: PreTrainedModel,
    layer_pruner: LayerPruner,
    *,
    is_visual: Tensor,
    attention_mask: Tensor,
    places: tuple[Tensor, Tensor] | None = None,
    queries: Tensor | None = None,
    call: Call | None = None,
) -> Iterator[LayerRecord]:
    """Prune at the inputs of the layers `layer_pruner.layers` during one `generate` or `forward` call.

    It works with a dynamic cache, a static one or none, and with beams, several samples per prompt and assisted
    decoding. Without a cache every step selects again; only the prompt is looked at, so it selects the same tokens.
    Passes that belong to another call are left alone, and no hook stays behind. Hidden states that later layers return
    are short. A cache returned by `forward` fits later calls only if no row was padded.

    Args:
        decoder: a text model with `layers` and `norm`; see `Adapter.decoder`.
        is_visual: True at the visual tokens of every prompt, newlines included, (B, S).
        attention_mask: zero at padding, (B, S).
        places: frame, and position in the frame, of every visual token of the batch in order, two vectors. None: all
            tokens are of one frame.
        queries: column of each prompt's last token, (B,), if labels follow it; None: the last column.
        call: the call whose passes are pruned; None: all passes of this thread.
    Raises:
        BudgetError: the decoder has no such layer.
        UnsupportedModelError: heads are spread over processes; on the call: chunked prefill, gradient checkpointing,
            or masks of an unknown form.
    """
    check_layers(layer_pruner, decoder)
    attended = attention_mask.bool()
    prompts = _prompts(is_visual.bool(), attended, places, queries)
    run = _Run(decoder, layer_pruner, attended, prompts, call or Call())
    with ExitStack() as stack:
        for handle in run.hook():
            stack.callback(handle.remove)
        yield run.record


def check_layers(layer_pruner: LayerPruner, decoder: PreTrainedModel) -> None:
    """Refuse a layer pruner that cannot work in a decoder.

    Raises:
        BudgetError: the decoder has no such layer.
        UnsupportedModelError: its heads are spread over processes.
    """
    for layer in layer_pruner.layers:
        check_layer(layer, len(decoder.layers))
    if is_sharded(decoder.get_submodule("layers")):
        raise UnsupportedModelError(
            f"{layer_pruner.name} reads the attention of all heads, but here the heads are spread over processes "
            "(tensor parallelism), which would keep different tokens; take a pre-LLM method alone"
        )


def last_prompt_columns(is_visual: Tensor, labels: Tensor) -> Tensor:
    """Column of each row's last prompt token, (B,): before the first labelled token, but not before the video ends."""
    S = labels.shape[1]
    columns = torch.arange(S, device=labels.device)
    first_label = columns.masked_fill(labels == -100, S).amin(1)
    last_video = columns.masked_fill(~is_visual, 0).amax(1)
    return torch.maximum(first_label - 1, last_video)


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """Columns of one prompt: its visual tokens that are still kept, with their positions, and its other tokens."""

    visual: Tensor
    frames: Tensor
    cells: Tensor
    others: Tensor
    text: Tensor  # those of `others` after the video

    @property
    def columns(self) -> Tensor:
        """The columns of all kept tokens, in order."""
        return torch.cat([self.visual, self.others]).sort().values

    def keep(self, chosen: Tensor) -> _Prompt:
        """Keep only these visual tokens; `chosen` indexes `visual`."""
        visual, frames, cells = (x[chosen] for x in (self.visual, self.frames, self.cells))
        return replace(self, visual=visual, frames=frames, cells=cells)

    def to(self, device: torch.device) -> _Prompt:
        """The same on another device: that of the layer which is pruned."""
        return _Prompt(**{name: columns.to(device) for name, columns in vars(self).items()})


def _prompts(
    is_visual: Tensor, attended: Tensor, places: tuple[Tensor, Tensor] | None, queries: Tensor | None
) -> list[_Prompt]:
    """Split a batch into its prompts. The host needs their lengths, so this reads the masks from the device, once."""
    device, (B, S) = is_visual.device, is_visual.shape
    masks = torch.stack([is_visual & attended, attended & ~is_visual]).cpu()
    last = [S - 1] * B if queries is None else queries.tolist()
    counts = masks[0].sum(1).tolist()
    zeros = torch.zeros(sum(counts), dtype=torch.long, device=device)
    frames, cells = (x.to(device).split(counts) for x in places or (zeros, torch.arange(len(zeros), device=device)))
    prompts = []
    for b in range(B):
        visual, others = (mask[b].nonzero()[:, 0] for mask in masks)
        end = int(visual[-1]) if len(visual) else -1
        text = others[(others > end) & (others <= last[b])]
        text = text if len(text) else torch.tensor([last[b]])
        columns = {"visual": visual.to(device), "others": others.to(device), "text": text.to(device)}
        prompts.append(_Prompt(**columns, frames=frames[b], cells=cells[b]))
    return prompts


class _Run:
    """State of one call. A "prompt call" is a forward pass of the decoder over the whole prompt.

    B prompts of S columns make `rows` = B * repeats sequences of `length` >= S tokens; S' columns of each are kept.
    """

    def __init__(
        self, decoder: PreTrainedModel, pruner: LayerPruner, attended: Tensor, prompts: list[_Prompt], call: Call
    ):
        self.decoder, self.pruner, self.attended, self.prompts = decoder, pruner, attended, prompts
        self.flash = "flash" in str(decoder.config._attn_implementation)
        self.record = LayerRecord(method=pruner.name, num_layers=len(decoder.layers))
        self.record.entered = tuple(len(prompt.visual) for prompt in prompts)
        self.call = call
        self.cache: Cache | None = None  # of the prompt that has passed
        self.prompt_call = False
        self.rows = self.length = 0
        self.taps: dict[int, AttentionTap] = {}  # by pruned layer, on the layer before it; while the prompt passes
        self.captured: dict[str, Any] = {}  # queries, keys and scale of the layer before, or of the layer itself
        self.left: list[_Prompt] = []  # the prompts, with the visual tokens that are still kept
        self.kept: dict[int, Kept] = {}  # by pruned layer, what it and the layers after it keep
        self.changes: dict[str, object] = {}  # arguments of the layers that see a short prompt, in the running pass

    def hook(self) -> Iterator[RemovableHandle | _Run]:
        """Register the hooks one by one, so that if one fails, the others can be removed."""
        layers, pruned = self.decoder.layers, self.pruner.layers
        yield self.decoder.register_forward_pre_hook(self._guard(self._begin), with_kwargs=True)
        yield self
        if self.pruner.noncausal_layer:
            attention = layers[pruned[0] - 1].self_attn
            yield attention.register_forward_pre_hook(self._guard(self._before_attention), with_kwargs=True)
        for i, layer in enumerate(layers[pruned[0] :], start=pruned[0]):
            hook = partial(self._at_layer, i) if i in pruned else self._after_layer
            yield layer.register_forward_pre_hook(self._guard(hook), with_kwargs=True)
        yield self.decoder.norm.register_forward_hook(self._guard(self._spread))

    def remove(self) -> None:
        """Stop listening to the attention functions."""
        for tap in self.taps.values():
            tap.remove()
        self.taps.clear()

    def _guard(self, hook: Callable[..., object]) -> Callable[..., Any]:
        """The hook, for passes of this call alone."""
        return lambda *args: hook(*args) if self.call.own else None

    def _begin(self, decoder: PreTrainedModel, _args: tuple, kwargs: _Arguments) -> None:
        """Before the decoder runs: tell the prompt from decoding after it, and start anew for a prompt."""
        inputs = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        cache = cache_of(kwargs)
        self.rows, self.length = inputs.shape[:2]
        self.prompt_call = cache is None or cache is not self.cache
        if not self.prompt_call:
            return
        self.cache, self.left, self.kept = cache, self.prompts, {}
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
        self.remove()
        for layer in self.pruner.layers if self.pruner.reads == "before" else ():
            self.taps[layer] = AttentionTap(decoder.layers[layer - 1].self_attn, self._guard(self._capture))

    def _before_attention(self, _module: nn.Module, args: tuple, kwargs: _Arguments) -> tuple[tuple, _Arguments] | None:
        if not self.prompt_call:
            return None
        attended = self.attended.to((args[0] if args else kwargs["hidden_states"]).device)
        return args, {**kwargs, **noncausal_mask(kwargs, attended, self.rows, self.length, flash=self.flash)}

    def _capture(self, queries: Tensor, keys: Tensor, scale: float) -> None:
        if self.prompt_call:
            self.captured.update(q=queries, k=keys, scale=scale)

    def _at_layer(self, K: int, module: PreTrainedModel, args: tuple, kwargs: _Arguments) -> tuple[tuple, _Arguments]:
        """At the input of pruned layer K: select and merge, then do as for the layers after it.

        All is done on the layer's device; its inputs may come from another layer's.
        """
        args, kwargs = _at(device_of(module), args, kwargs)
        self.changes = {}
        if self.prompt_call:
            if self.pruner.reads == "own":
                self._read_own(module, args[0], kwargs)
            args = (self._select(K, args[0]), *args[1:])
            self.changes["position_embeddings"] = self._rotation(kwargs)
            self.changes["position_ids"] = None  # only read to recognise packed sequences, and gaps look like them
        self.changes["attention_mask"] = short_mask(
            kwargs, self.kept[K], self.rows, self.length, self.prompt_call, flash=self.flash
        )
        return self._after_layer(module, args, kwargs)

    def _read_own(self, layer: PreTrainedModel, hidden: Tensor, kwargs: _Arguments) -> None:
        """Capture the queries and keys of a layer that has not run yet."""

        def note(queries: Tensor, keys: Tensor, scale: float) -> None:
            self._capture(queries, keys, scale)
            raise _Stop

        tap = AttentionTap(layer.self_attn, self._guard(note))
        normed, rotation = layer.input_layernorm(hidden.detach()), self._rotation(kwargs)
        try:
            with torch.no_grad():  # without a cache, so that nothing is written
                layer.self_attn(hidden_states=normed, position_embeddings=rotation, attention_mask=None)
        except _Stop:
            pass
        finally:
            tap.remove()

    def _after_layer(self, _module: nn.Module, args: tuple, kwargs: _Arguments) -> tuple[tuple, _Arguments]:
        return args, {**kwargs, **self.changes}

    def _rotation(self, kwargs: _Arguments) -> tuple[Tensor, ...]:
        """Cosines and sines of the tokens that are still kept."""
        if not self.kept:
            return kwargs["position_embeddings"]
        full = [x.expand(self.rows, -1, -1) for x in kwargs["position_embeddings"]]
        columns = self._latest().extended(self.length)[..., None].to(full[0].device)
        return tuple(x.gather(1, columns.expand(-1, -1, x.shape[-1])) for x in full)

    def _latest(self) -> Kept:
        return self.kept[max(self.kept)]

    def _select(self, K: int, hidden: Tensor) -> Tensor:
        """Let the pruner choose for every prompt; return the kept states, (rows, S' + rest, D)."""
        if K in self.taps:
            self.taps.pop(K).remove()  # decoding does not need it
        repeats = self.rows // len(self.prompts)  # beams and samples agree on the prompt, so the first decides
        width = self._latest().columns.shape[1] if self.kept else self.attended.shape[1]
        hidden, left, kept_rows = hidden.clone(), [], []
        for b, prompt in enumerate(prompt.to(hidden.device) for prompt in self.left):
            columns = prompt.columns
            rows = columns  # where they are in `hidden`, along its axis 1
            if self.kept:
                rows = torch.arange(width - len(columns), width, device=columns.device)
            if len(prompt.visual):
                tokens = self._tokens(K, prompt, columns, hidden, b, rows)
                states, chosen = self.pruner(tokens)
                hidden[b * repeats : (b + 1) * repeats, rows[tokens.visual[chosen]]] = states
                prompt = prompt.keep(chosen)
                rows = rows[torch.searchsorted(columns, prompt.columns)]
            left.append(prompt)
            kept_rows.append(rows)
        self.captured.clear()
        self.left, self.record.stayed[K] = left, tuple(len(prompt.visual) for prompt in left)
        self.record.places = tuple((prompt.frames, prompt.cells) for prompt in left)
        lengths = [len(rows) for rows in kept_rows]
        self.kept[K] = Kept.of([prompt.columns for prompt in left], repeats, self.attended.shape[1])
        index = torch.stack([F.pad(rows, (max(lengths) - len(rows), 0)) for rows in kept_rows])
        rest = torch.arange(width, hidden.shape[1], device=index.device)
        index = torch.cat([index.repeat_interleave(repeats, dim=0), rest.expand(self.rows, -1)], dim=1)
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))

    def _tokens(self, K: int, prompt: _Prompt, columns: Tensor, hidden: Tensor, b: int, rows: Tensor) -> LayerTokens:
        """What the pruner sees of prompt `b`, whose kept tokens are at these `rows` of its first sequence."""
        row = b * (self.rows // len(self.prompts))
        visual, text = (torch.searchsorted(columns, x) for x in (prompt.visual, prompt.text))
        if "q" not in self.captured:
            read = K - 1 if self.pruner.reads == "before" else K
            raise UnsupportedModelError(
                f"pruning at layer {K} reads queries and keys where layer {read} calls transformers' attention "
                "function, which it did not; leave out torch.compile for the decoder, and attention code of its own"
            )
        captured = (self.captured[name][row].to(hidden.device) for name in ("q", "k"))
        queries, keys = (x.transpose(0, 1).float() for x in captured)
        return LayerTokens(
            layer=K,
            hidden=hidden[row, rows],
            visual=visual,
            text=text,
            queries=queries[rows[text]],
            keys=keys[rows],
            scale=self.captured["scale"],
            norm_weight=weight_of(self.decoder.norm, "weight").detach().to(hidden.device),
            frames=prompt.frames,
            cells=prompt.cells,
            counts=self.record.counts(b, K),
        )

    def _spread(self, _module: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
        """Spread the states to the full length: a dropped token gets the state of the last kept token before it, from
        which the next token is predicted."""
        if not self.prompt_call:
            return None
        keep = torch.zeros_like(self.attended)
        for row, prompt in zip(keep, self.left, strict=True):
            row[prompt.columns.to(keep.device)] = True
        keep = keep.repeat_interleave(self.rows // len(keep), dim=0)
        keep = F.pad(keep, (0, self.length - keep.shape[1]), value=True)
        last = keep.cumsum(1)  # 1 + the index, among the kept, of the last kept token up to each column
        index = (last - last[:, -1:] + output.shape[1] - 1).clamp_min(0)  # counted from the end: padding is on the left
        return output.gather(1, index.to(output.device)[..., None].expand(-1, -1, output.shape[-1]))


def _at(device: torch.device, args: tuple, kwargs: _Arguments) -> tuple[tuple, _Arguments]:
    """The inputs of a layer on its device: states, mask and rotations."""
    mask, rotations = kwargs.get("attention_mask"), kwargs["position_embeddings"]
    moved: _Arguments = {"position_embeddings": tuple(x.to(device) for x in rotations)}
    if isinstance(mask, Tensor):
        moved["attention_mask"] = mask.to(device)
    return (args[0].to(device), *args[1:]), {**kwargs, **moved}
