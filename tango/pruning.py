"""`prune`: token pruning on a stock transformers model, as a scoped and undoable change of one instance.

`generate` and `forward` of the instance are wrapped. A prompt with videos is encoded, pruned and shortened first;
stock code then runs on the short prompt as on any other, so caches, beams, batches and assisted decoding work.
While the short prompt passes through the model, a transient hook replaces its placeholders' embeddings.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tango.containers import VisualTokens
from tango.errors import OptionError, TangoError
from tango.layer_prune import last_prompt_columns, layer_pruning
from tango.methods import (
    KeepAllPruner,
    LayerPruner,
    Pruner,
    build_layer_pruner,
    build_layer_pruner_for_mean,
    build_pruner,
    build_pruner_for_mean,
    method_class,
)
from tango.models.base import Adapter, SaliencyKind, adapter_class
from tango.ops.flops import check_layer
from tango.overlay import Overlay
from tango.profiling import StageTimer
from tango.splice import ShortPrompt, shorten
from tango.stats import PruningStats, VideoStats


class Prepared(NamedTuple):
    """A prompt that is ready for the language model, and what must hold while it passes through."""

    short: ShortPrompt
    # Of every visual token that stays, newlines included: frame, and place in the frame; None: nobody prunes later.
    places: tuple[Tensor, Tensor] | None
    timer: StageTimer
    scope: AbstractContextManager[Any]


class Pruning:
    """Handle of a pruned model. `with` or `remove()` restores the model exactly as it was.

    `stats` describes the last call with video; None before the first.
    """

    def __init__(self, model: Any, pruner: Pruner, adapter: Adapter, layer_pruner: LayerPruner | None = None):
        self.model, self.pruner, self.adapter, self.layer_pruner = model, pruner, adapter, layer_pruner
        self.stats: PruningStats | None = None
        self._stack = ExitStack()
        self._removed = False
        self._install()

    def __enter__(self) -> Pruning:
        if self._removed:
            raise TangoError("this pruning was removed; call tango.prune again")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Undo the pruning. Doing it twice is harmless."""
        self._removed = True
        self._stack.close()

    def _install(self) -> None:
        """Wrap `generate` and `forward` of this one instance; nn.Module calls the instance's own `forward`."""
        stock_generate, stock_forward = self.model.generate, self.model.forward
        video_input = self.adapter.video_input

        def generate(*args: Any, **kwargs: Any) -> Any:
            kwargs.update(zip(generate_names, args, strict=False))
            if kwargs.get(video_input) is None:
                return stock_generate(**kwargs)
            return self._generate(stock_generate, kwargs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            kwargs.update(zip(forward_names, args, strict=False))
            if kwargs.get(video_input) is None:
                return stock_forward(**kwargs)
            return self._forward(stock_forward, kwargs)

        generate_names, forward_names = (list(inspect.signature(f).parameters) for f in (stock_generate, stock_forward))
        for name, stock, call in (("generate", stock_generate, generate), ("forward", stock_forward, forward)):
            wrapper = _Wrapper(self, stock, call)
            self._stack.callback(functools.partial(_restore, self.model, name, wrapper, self.model.__dict__.get(name)))
            self.model.__dict__[name] = wrapper

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any]) -> Prepared:
        """Encode and prune all videos of a batch and shorten its prompt; `stats` then describe it.

        `generate` and `forward` of a pruned model do this by themselves.
        """
        adapter, timer = self.adapter, StageTimer(input_ids.device)
        encoded = adapter.encode_videos(inputs, self.pruner.wants, timer)
        with timer.stage("prune"):
            pruned = [self.pruner(video) for video in encoded.videos]
        with timer.stage("splice"):
            images = adapter.encode_images(inputs)
            laid_out = [adapter.lay_out(*pair) for pair in zip(encoded.videos, pruned, strict=True)]
            features, stays = (torch.cat(parts) for parts in zip(*laid_out, strict=True))
            short = shorten(
                input_ids,
                attention_mask,
                self.model.get_input_embeddings(),
                video_token_id=adapter.video_token_id,
                stays=stays,
                video_features=features,
                images=None if images is None else (images.token_id, images.features),
                positions=adapter.positions(input_ids, attention_mask, inputs),
                pad_token_id=_pad_token_id(self.model),
            )
        rows = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        kept = zip(encoded.videos, pruned, strict=True)
        self.stats = PruningStats(
            method=self.method,
            retention_ratio=self.pruner.retention_ratio,
            videos=tuple(_video_stats(video, len(p.indices)) for video, p in kept),
            entering_before=len(stays),
            entering_after=len(features),
            prompt_before=tuple(rows.sum(1).tolist()),
            prompt_after=tuple(short.attention_mask.sum(1).tolist()),
            timer=timer,
        )
        frames = [(len(video.features), own) for video, (_, own) in zip(encoded.videos, laid_out, strict=True)]
        places = None if self.layer_pruner is None else _places(frames)
        return Prepared(short, places, timer, adapter.prefill_scope(encoded, pruned, images, short))

    def _generate(self, stock: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        for name in ("inputs_embeds", "mm_encoder_outputs"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} and {self.adapter.video_input} cannot both be given to a pruned model")
        inputs = kwargs.pop("inputs", None)
        ids = kwargs.pop("input_ids", inputs)
        if ids is None:
            raise ValueError(f"{self.adapter.video_input} needs input_ids beside it")
        mask = kwargs.pop("attention_mask", None)
        with torch.no_grad():
            short, places, timer, scope = self.encode(ids, mask, kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in self.adapter.consumed}
        kwargs.pop("position_ids", None)  # they describe the long prompt
        if short.retains_positions:  # else generate counts by itself
            kwargs["position_ids"] = short.position_ids
            if short.position_ids.dim() == 2:
                _check_cache(self.model, kwargs)
        _adjust_lengths(self.model, kwargs, ids.shape[1] - short.input_ids.shape[1])
        with scope, self._in_decoder(short, places), Overlay(self.model, short.inputs_embeds, timer) as overlay:
            output = stock(input_ids=short.input_ids, attention_mask=short.attention_mask, **kwargs)
        if overlay.prefill_end is not None:
            timer.add("decoding", overlay.prefill_end)
        return _with_prompt(output, ids, short.input_ids.shape[1])

    def _forward(self, stock: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Direct calls, `model(pixel_values_videos=..., labels=...)`: ids and videos become short embeddings."""
        if kwargs.get("input_ids") is None:
            raise ValueError(f"{self.adapter.video_input} needs input_ids beside it")
        short, places, _, scope = self.encode(kwargs.pop("input_ids"), kwargs.pop("attention_mask", None), kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in self.adapter.consumed}
        if kwargs.get("labels") is not None:
            kwargs["labels"] = short.gather_labels(kwargs["labels"])
        kwargs["position_ids"] = short.position_ids
        with scope, self._in_decoder(short, places, kwargs.get("labels")):
            return stock(inputs_embeds=short.inputs_embeds, attention_mask=short.attention_mask, **kwargs)

    @property
    def method(self) -> str:
        """Name of what prunes: the method before the LLM, or the one inside it where all tokens enter."""
        inside = self.layer_pruner if isinstance(self.pruner, KeepAllPruner) else None
        return self.pruner.name if inside is None else inside.name

    @contextmanager
    def _in_decoder(
        self, short: ShortPrompt, places: tuple[Tensor, Tensor] | None, labels: Tensor | None = None
    ) -> Iterator[None]:
        """While the short prompt passes: prune at a layer, if asked to, and complete `stats`."""
        if self.layer_pruner is None:
            yield
            return
        queries = None if labels is None else last_prompt_columns(short.is_video, labels)
        prompt: dict[str, Any] = {"is_visual": short.is_video, "attention_mask": short.attention_mask, "places": places}
        with layer_pruning(self.adapter.decoder, self.layer_pruner, **prompt, queries=queries) as record:
            yield
        if self.stats is not None and any(record.entered):
            share = self.stats.tokens_after / self.stats.tokens_before
            self.stats = replace(self.stats, layer=record.stats(share))


def prune(
    model: Any,
    method: str | Pruner | LayerPruner = "tango",
    *,
    layer_pruner: LayerPruner | str | None = None,
    mean_retention_ratio: float | None = None,
    saliency: SaliencyKind = "p-attn",
    positions: Literal["contiguous", "kept", "correct", "stock"] | None = None,
    **options: Any,
) -> Pruning:
    """Prune the visual tokens of every video that `model` is given from now on.

    Use it as a context manager, or call `remove()` on the result. Text and images pass through unpruned; the model's
    weights and class are not touched, and afterwards no hook or attribute is left behind.
    Streamers and logits processors see the short prompt. A cache that a pruned call returns holds the short prompt, so
    it cannot be continued with the long `sequences`; and where kept tokens retain their positions (Qwen-VL, and
    `positions="kept"`) a model cannot be decoded step by step from the cache of a direct call, because stock code does
    not know them: use `generate`.

    Args:
        model: a stock transformers model, e.g. `LlavaOnevisionForConditionalGeneration`.
        method: a name from `available_methods()`, or a pruner that is built already. For a method inside the LLM all
            tokens enter it, and `retention_ratio` means the average over its layers; a built one is taken as it is.
        layer_pruner: prune again at the input of a decoder layer; built, or a name from `available_layer_pruners()`.
        mean_retention_ratio: in place of `retention_ratio`, the fraction kept on average over the LLM's layers; with
            a layer pruner, more tokens then enter the LLM (section 5.1 of the paper).
        saliency: "p-attn" (attention of SigLIP's pooling query, as in the paper; `tango.load` brings its weights) or
            "attn" (mean attention received in the tower's last used block; needs nothing).
        positions: LLaVA: "contiguous" (the default, as in the paper's release) numbers what the LLM sees from 0, with
            "kept" every token keeps its position in the unpruned prompt. Qwen-VL, whose kept tokens always do:
            "correct" (the default) as these models were trained, or "stock" as this transformers release computes them.
        **options: fields of the method, such as `retention_ratio=0.1`.
    Raises:
        UnknownNameError, OptionError: no such method or option, or none for this model.
        UnsupportedModelError: no adapter for this model, or none for pruning inside its decoder.
        MissingSignalError: the model cannot supply what the method needs.
        BudgetError: a ratio is out of range or cannot be reached.
        TangoError: the model is pruned already.
    """
    if not isinstance(method, str) and (options or mean_retention_ratio is not None):
        given = [*options, *(["mean_retention_ratio"] if mean_retention_ratio is not None else [])]
        raise TangoError(f"{method.name} is built already; its options cannot be changed: {', '.join(given)}")
    adapter_options: dict[str, Any] = {} if positions is None else {"positions": positions}
    family = adapter_class(getattr(model, "config", None))
    if unknown := adapter_options.keys() - inspect.signature(family).parameters.keys():
        raise OptionError(f"{family.__name__} has no option {', '.join(sorted(unknown))}")
    adapter = family(model, saliency=saliency, **adapter_options)
    if isinstance(layer_pruner, str):
        layer_pruner = build_layer_pruner(layer_pruner)
    pruner, layer_pruner = _choose(method, layer_pruner, mean_retention_ratio, adapter, options)
    for layer in () if layer_pruner is None else layer_pruner.layers:
        check_layer(layer, len(adapter.decoder.layers))
    adapter.check(pruner.needs, pruner.name)
    if pruning_of(model) is not None:
        raise TangoError("this model is pruned already; remove() the first pruning before adding another")
    return Pruning(model, pruner, adapter, layer_pruner)


def _choose(
    method: str | Pruner | LayerPruner,
    layer_pruner: LayerPruner | None,
    mean: float | None,
    adapter: Adapter,
    options: dict[str, Any],
) -> tuple[Pruner, LayerPruner | None]:
    """What prunes before the LLM and what inside it."""
    if isinstance(method, Pruner):
        return method, layer_pruner
    name = method if isinstance(method, str) else method.name
    if isinstance(method, LayerPruner) or issubclass(method_class(name), LayerPruner):
        if layer_pruner is not None:
            raise OptionError(f"{name} prunes inside the LLM already; leave out layer_pruner, or choose another method")
        if isinstance(method, LayerPruner):
            return KeepAllPruner(), method
        return KeepAllPruner(), build_layer_pruner_for_mean(name, len(adapter.decoder.layers), mean, **options)
    if mean is None:
        return build_pruner(name, **options), layer_pruner
    num_layers = 1 if layer_pruner is None else len(adapter.decoder.layers)
    return build_pruner_for_mean(name, mean, layer_pruner, num_layers, **options), layer_pruner


def pruning_of(model: Any) -> Pruning | None:
    """The pruning that is active on a model, if any."""
    return getattr(getattr(model, "generate", None), "pruning", None)


class _Wrapper:
    """Stands in for a method of one model. It must not travel: a copy would still run the original."""

    def __init__(self, pruning: Pruning, stock: Callable[..., Any], call: Callable[..., Any]):
        functools.update_wrapper(self, stock)
        self.pruning, self._call = pruning, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce_ex__(self, _protocol: Any) -> Any:  # of copy.deepcopy, pickle and torch.save
        raise TangoError("a pruned model cannot be copied or pickled; remove() the pruning first")


def _restore(model: nn.Module, name: str, wrapper: _Wrapper, before: Any) -> None:
    if model.__dict__.get(name) is not wrapper:
        warnings.warn(
            f"{name} was replaced after pruning began and is left as it is; the model may still prune", stacklevel=2
        )
    elif before is None:
        del model.__dict__[name]
    else:
        model.__dict__[name] = before


def _video_stats(video: VisualTokens, kept: int) -> VideoStats:
    T, N, _ = video.features.shape
    return VideoStats(frames=T, grid=video.grid, tokens_before=T * N, tokens_after=kept)


def _places(laid_out: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Frame of every placeholder that stays and its place in the frame, from each video's frames and placeholders.

    Numbers go on from video to video. A newline after the last frame counts as a frame of its own.
    """
    frames, cells, first_frame, first_cell = [], [], 0, 0
    for num_frames, stays in laid_out:
        per_frame = len(stays) // num_frames
        index = stays.nonzero()[:, 0]
        frames.append(index // per_frame + first_frame)
        cells.append(index % per_frame + first_cell)
        first_frame, first_cell = first_frame + num_frames + 1, first_cell + per_frame
    return torch.cat(frames), torch.cat(cells)


def _pad_token_id(model: Any) -> int:
    """Any id will do: padding is masked. Prefer the model's own."""
    for source in (model.generation_config, model.config):
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(source, name, None)
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int):
                return value
    return 0


def _check_cache(model: Any, kwargs: Mapping[str, Any]) -> None:
    """Without a cache, and with flash attention in later chunks of a prefill, transformers takes gaps between positions
    for borders of several packed prompts."""
    config = kwargs.get("generation_config") or model.generation_config
    if kwargs.get("use_cache", config.use_cache) is False:
        raise OptionError("positions='kept' needs the cache; leave out use_cache=False, or take 'contiguous'")
    chunked = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
    if chunked and "flash" in str(model.config.get_text_config()._attn_implementation):
        raise OptionError("positions='kept' and flash attention need the prefill in one piece, not in chunks")


def _adjust_lengths(model: Any, kwargs: dict[str, Any], saved: int) -> None:
    """Lengths count the caller's prompt, those of stopping criteria too; make them count the short one."""
    criteria = [copy.copy(criterion) for criterion in kwargs.get("stopping_criteria") or ()]
    for criterion in criteria:
        if isinstance(getattr(criterion, "max_length", None), int):
            criterion.max_length -= saved
    if criteria:
        kwargs["stopping_criteria"] = type(kwargs["stopping_criteria"])(criteria)
    config = kwargs.get("generation_config") or model.generation_config
    for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if kwargs.get(new) is not None or getattr(config, new, None) is not None:
            continue
        value = kwargs.get(total) if kwargs.get(total) is not None else getattr(config, total, None)
        if value:
            kwargs[total] = max(value - saved, 0)


def _with_prompt(output: Any, prompt: Tensor, short_length: int) -> Any:
    """Put the caller's own prompt in front of the new tokens, as stock `generate` would."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    repeated = prompt.to(sequences.device).repeat_interleave(len(sequences) // len(prompt), dim=0)
    sequences = torch.cat([repeated, sequences[:, short_length:]], dim=1)
    if isinstance(output, Tensor):
        return sequences
    output.sequences = sequences
    return output
