"""`prune`: token pruning on a stock transformers model, as a scoped change of one instance that can be undone.

It wraps `generate` and `forward` of the instance. Videos are encoded and pruned first, and the prompt is shortened.
Stock code then runs on the short prompt as on any other, so caches, beams, batches and assisted decoding work. While
the short prompt passes through the model, a hook replaces its placeholders' embeddings.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tango.containers import Signal
from tango.errors import OptionError, TangoError, UnsupportedModelError
from tango.methods import KeepAllPruner, LayerPruner, Plan, Pruner, TowerMerger
from tango.models.base import Adapter
from tango.models.calls import (
    Call,
    cache_argument,
    cache_of,
    check_cache,
    on_host,
    remember_prompt,
    remembered_prompt,
    without,
)
from tango.models.placement import device_of
from tango.models.splice import ShortPrompt, shorten
from tango.models.unwrapping import unwrap
from tango.profiling import StageTimer
from tango.runtime.callers import CallersPrompt, with_long_logits
from tango.runtime.decoding import compiling_options, separate_cache_length
from tango.runtime.encoded_video import EncodedVideo, Origin
from tango.runtime.generation_setup import check_positions, mask_arguments, pad_token_id, prepare_special_tokens
from tango.runtime.layer_prune import check_layers, last_prompt_columns, layer_pruning
from tango.runtime.overlay import Overlay
from tango.runtime.owned import PlaceholderGuard, replace_method
from tango.runtime.pruned_videos import PrunedVideos, check_images, in_order, places_of, prune_media
from tango.runtime.stats import PruningStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

_MARK = "tango_pruning"  # attribute of a pruned model
_METHODS = ("generate", "forward", "_get_logits_processor", "_prepare_special_tokens")


class Prepared(NamedTuple):
    """A prompt that is ready for the LLM."""

    short: ShortPrompt
    # Of every kept visual token, newlines included: frame, and position in the frame. None: no layer pruner asks.
    places: tuple[Tensor, Tensor] | None
    stats: PruningStats
    videos: PrunedVideos
    scope: AbstractContextManager[object]  # entered while the prompt passes through the model


class Pruning:
    """Handle of a pruned model. `with` or `remove()` restores the model exactly as it was.

    Example:
        >>> pruning = tango.prune(model, "uniform", retention_ratio=0.1)  # a Pruning
        >>> text = tango.answer(model, processor, "clip.mp4", "what color is plain")
        >>> pruning.method, pruning.stats.tokens_before, pruning.stats.tokens_after
        ('uniform', 784, 78)
        >>> pruning.remove()
    """

    def __init__(
        self, model: PreTrainedModel, pruner: Pruner, adapter: Adapter, layer_pruner: LayerPruner | None = None
    ):
        self.model, self.pruner, self.adapter, self.layer_pruner = model, pruner, adapter, layer_pruner
        self._own = threading.local()  # per thread: `stats`, and the running `call`
        self._stack = ExitStack()
        self._removed = False
        self._install()

    @property
    def stats(self) -> PruningStats | None:
        """What the last call with a video did, among the calls of the asking thread; None before the first."""
        return getattr(self._own, "stats", None)

    def __enter__(self) -> Pruning:
        if self._removed:
            raise TangoError("this pruning was removed; call tango.prune again")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remove()

    def __reduce_ex__(self, _protocol: object) -> str:  # called by copy.deepcopy, pickle and torch.save
        raise TangoError("a pruned model cannot be copied or pickled; remove() the pruning first")

    def remove(self) -> None:
        """Undo the pruning. A second call does nothing."""
        self._removed = True
        self._stack.close()

    def _install(self) -> None:
        """Replace methods of this one instance; nn.Module calls the instance's own `forward`."""
        model = self.model
        stock = {name: getattr(model, name) for name in _METHODS}
        video, image = self.adapter.pruned_inputs[0], self.adapter.pruned_inputs[-1]  # one name, where images stay
        generate_names, forward_names = (list(inspect.signature(stock[n]).parameters) for n in ("generate", "forward"))

        def generate(*args: Any, **kwargs: Any) -> object:
            kwargs.update(zip(generate_names, args, strict=False))
            if self._removed:
                return stock["generate"](**kwargs)
            with self._running() as call:
                return self._generate(stock["generate"], kwargs, call)

        def forward(*args: Any, **kwargs: Any) -> object:
            kwargs.update(zip(forward_names, args, strict=False))
            if self._removed or (kwargs.get(video) is None and kwargs.get(image) is None):
                if kwargs.get("position_ids") is None and not self._removed:  # stock `generate` always gives them
                    self._check_step(kwargs)
                return stock["forward"](**kwargs)
            return prune_and_forward(kwargs)

        @torch.compiler.disable  # hooks and threads cannot be traced
        def prune_and_forward(kwargs: dict[str, Any]) -> object:
            outer = self._call()
            if outer is not None and outer.is_stock and self.adapter.holds_video(kwargs) is None:
                return stock["forward"](**kwargs)
            with self._running() as call:
                return self._forward(stock["forward"], kwargs, call)

        def make_processors(**kwargs: Any) -> object:
            call, make = self._call(), stock["_get_logits_processor"]
            if call is None or call.make_processors is None:
                return make(**kwargs)
            return call.make_processors(make, kwargs)

        def prepare_tokens(*args: Any, **kwargs: Any) -> None:
            prepare_special_tokens(stock["_prepare_special_tokens"], *args, **kwargs)

        calls: dict[str, Callable[..., object]] = {
            "generate": generate,
            "forward": forward,
            "_get_logits_processor": make_processors,
            "_prepare_special_tokens": prepare_tokens,
            "_replicate_for_data_parallel": _refuse_replicas,
        }
        for name, call in calls.items():
            self._stack.callback(replace_method(model, name, call))
        self._stack.enter_context(self.adapter.tower_scope())
        guarded = (self.adapter.guarded_token_id, *self.adapter.pruned_token_ids[1:])
        guard = PlaceholderGuard(guarded, self._may_read_placeholders)
        self._stack.callback(model.get_input_embeddings().register_forward_pre_hook(guard).remove)
        self._stack.callback(separate_cache_length(model))
        vars(model)[_MARK] = self
        self._stack.callback(vars(model).pop, _MARK, None)

    def _call(self) -> Call | None:
        """This thread's call, if what runs now belongs to it."""
        call = getattr(self._own, "call", None)
        return call if call is not None and call.own else None

    @contextmanager
    def _running(self) -> Iterator[Call]:
        """Begin a call of this thread. If it is made from within another call, that one stands aside."""
        outer: Call | None = getattr(self._own, "call", None)
        self._own.call = Call()
        try:
            with nullcontext() if outer is None else outer.aside():
                yield self._own.call
        finally:
            self._own.call = outer

    def _may_read_placeholders(self) -> bool:
        """Whether ids pass unchecked: text, candidates that assisted decoding takes from the prompt, or images'."""
        call = self._call()
        own = call is not None and (call.passed or call.is_stock)
        return self._removed or getattr(self._own, "shortening", False) or own

    def _embed_short(self, ids: Tensor) -> Tensor:
        """Embed ids (B, S) without placeholders. The guard does not check them: that would wait for the device."""
        self._own.shortening = True
        try:
            return self.model.get_input_embeddings()(ids)
        finally:
            self._own.shortening = False

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any], call: Call | None = None
    ) -> Prepared:
        """Encode and prune all videos of a batch and shorten its prompts; `stats` then describes that.

        `generate` and `forward` of a pruned model do this by themselves.

        Raises:
            NotFiniteError: a video's features hold NaN or infinity.
        """
        call = call or Call()
        prepared = self._prepare(input_ids, attention_mask, inputs, call)
        self._accept(prepared, call)
        return prepared

    def _accept(self, prepared: Prepared, call: Call) -> None:
        """Refuse features that are not finite. This reads from the device, so that it comes after the prefill has been
        launched, and before its result is used."""
        if not call.accepted:
            prepared.videos.refuse_unsound()
            call.accepted, self._own.stats = True, prepared.stats

    def _prepare(
        self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any], call: Call
    ) -> Prepared:
        """Encode, prune and shorten without waiting for the device, but for what the pruner itself reads."""
        adapter, timer = self.adapter, StageTimer(self.adapter.device)
        inputs = on_host({**inputs, "input_ids": input_ids, "attention_mask": attention_mask})
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        given, known = inputs.get(adapter.video_input), None
        if isinstance(given, EncodedVideo):
            given.origin.check(Origin(adapter, self.pruner, self.layer_pruner))
            known = given.pruned
        parts = prune_media(adapter, self.pruner, inputs, timer, known)
        with timer.stage("splice"):
            images = None if adapter.images else adapter.encode_images(inputs)
            video, image = adapter.placeholders(input_ids, inputs, images)
            videos = parts[0]
            if adapter.images:
                image = input_ids == adapter.image_token_id
                videos, video = in_order(parts, {"video": video, "image": image}), video | image
            videos = videos.to(device_of(self.model.get_input_embeddings()))
            short = shorten(
                input_ids,
                attention_mask,
                self._embed_short,
                video=video,
                keep_masks=videos.keep_masks,
                kept_counts=videos.kept_counts,
                video_features=videos.features,
                images=None if images is None else (image, images.features),
                positions=adapter.positions(input_ids, attention_mask, inputs),
                pad_token_id=pad_token_id(self.model),
            )
        rows = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        stats = PruningStats(
            method=self.method,
            retention_ratio=self.pruner.retention_ratio,
            videos=videos.sizes_of("video"),
            images=videos.sizes_of("image"),
            entering_before=sum(map(len, videos.keep_masks)),
            entering_after=len(videos.features),
            prompt_before=tuple(rows.bool().sum(1).tolist()),
            prompt_after=short.lengths,
            timer=timer,
        )
        places = None if self.layer_pruner is None else places_of(videos)
        scope = adapter.prefill_scope(videos.deeper, images, short, call)
        return Prepared(short, places, stats, videos, scope)

    def _generate(self, stock: Callable[..., Any], kwargs: dict[str, Any], call: Call) -> object:
        if self.adapter.holds_video(kwargs) is False:
            return self._run_stock(stock, kwargs, call)
        for name in ("inputs_embeds", "mm_encoder_outputs"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} and {self.adapter.video_input} cannot both be given to a pruned model")
        inputs = kwargs.pop("inputs", None)
        ids = kwargs.pop("input_ids", inputs)
        if ids is None:
            raise ValueError(f"{self.adapter.video_input} needs input_ids beside it")
        mask = kwargs.pop("attention_mask", None)
        with torch.no_grad():
            prepared = self._prepare(ids, mask, kwargs, call)
        short, stats = prepared.short, prepared.stats
        if self.layer_pruner is not None:
            self._accept(prepared, call)  # it reads from the device in any case
        self._check_cache(cache_of(kwargs), short)
        video = kwargs.get(self.adapter.video_input)
        if isinstance(video, EncodedVideo) and (cache := video.prefix_for(short, kwargs, self.model)) is not None:
            kwargs[cache_argument(self.model)] = cache
        kwargs = without(self.adapter.consumed | self.adapter.own_inputs, kwargs)
        kwargs.pop("position_ids", None)  # those of the long prompt
        kwargs |= self.adapter.short_inputs(short)
        if short.retains_positions:  # else generate counts them by itself
            kwargs["position_ids"] = short.position_ids
            if short.position_ids.dim() == 2:
                check_positions(self.model, kwargs)
        prompt = CallersPrompt(ids, short.input_ids.shape[1], call)
        prompt.adapt(kwargs, self.model.generation_config)
        kwargs |= compiling_options(kwargs, self.model.generation_config, inside=self.layer_pruner is not None)
        call.make_processors = prompt.processors
        accept = partial(self._accept, prepared, call)
        overlay = Overlay(self.model, short, stats.timer, call, self.adapter, accept)
        with prepared.scope, self._in_decoder(prepared, call), overlay:
            ids = short.text_ids if self.adapter.stock_counts_placeholders else short.input_ids
            output = stock(input_ids=ids, **{**mask_arguments(self.model, short), **kwargs})
        accept()
        if not call.passed:
            raise TangoError("generate did not run the model that was pruned, so the video was not seen")
        if overlay.prefill_end is not None:
            stats.timer.add("decoding", overlay.prefill_end)
        return prompt.before(output)

    def _run_stock(self, stock: Callable[..., Any], kwargs: dict[str, Any], call: Call) -> object:
        """Run a call without a video; images may stand under the same names as videos."""
        self._check_cache(cache_of(kwargs), None)
        call.is_stock = kwargs.get(self.adapter.video_input) is not None
        return stock(**without(self.adapter.own_inputs, kwargs))

    def _forward(self, stock: Callable[..., Any], kwargs: dict[str, Any], call: Call) -> object:
        """Run a direct call, `model(pixel_values_videos=..., labels=...)`, on short embeddings."""
        if self.adapter.holds_video(kwargs) is False:
            return self._run_stock(stock, kwargs, call)
        if kwargs.get("input_ids") is None:
            raise TangoError(
                f"{self.adapter.video_input} needs input_ids beside it, not embeddings; adapters that put "
                "learnt tokens before the prompt cannot be used on a pruned model"
            )
        ids, mask = kwargs.pop("input_ids"), kwargs.pop("attention_mask", None)
        prepared = self._prepare(ids, mask, kwargs, call)
        short = prepared.short
        if self.layer_pruner is not None:
            self._accept(prepared, call)
        self._check_cache(cache_of(kwargs), short)
        kwargs = without(self.adapter.consumed | self.adapter.own_inputs, kwargs)
        if kwargs.get("labels") is not None:
            kwargs["labels"] = short.gather_labels(kwargs["labels"])
        kwargs |= self.adapter.short_inputs(short) | self.adapter.beside_embeds(short.text_ids)
        kwargs["position_ids"] = short.position_ids
        wanted = kwargs.pop("logits_to_keep", 0)
        with prepared.scope, self._in_decoder(prepared, call, kwargs.get("labels")):
            output = stock(inputs_embeds=short.inputs_embeds, attention_mask=short.attention_mask, **kwargs)
            self._accept(prepared, call)
        if isinstance(output, Mapping):
            remember_prompt(cache_of(output), short.input_ids)
        labelled = kwargs.get("labels") is not None
        if labelled and self.model.training and not isinstance(wanted, Tensor) and not wanted:
            return output  # a training step has its loss; logits for the pruned columns would take gigabytes
        return with_long_logits(output, short, wanted, labelled=labelled)

    @property
    def method(self) -> str:
        """Name of the method: the pre-LLM one, or the intra-LLM one if all tokens enter the LLM."""
        inside = self.layer_pruner if isinstance(self.pruner, KeepAllPruner) else None
        return self.pruner.name if inside is None else inside.name

    @contextmanager
    def _in_decoder(self, prepared: Prepared, call: Call, labels: Tensor | None = None) -> Iterator[None]:
        """While the short prompt passes, prune inside the LLM if there is a layer pruner; then complete `stats`."""
        short, places, stats = prepared.short, prepared.places, prepared.stats
        if self.layer_pruner is None:
            yield
        else:
            queries = None if labels is None else last_prompt_columns(short.is_video, labels)
            prompt = {"is_visual": short.is_video, "attention_mask": short.attention_mask}
            with layer_pruning(
                self.adapter.decoder, self.layer_pruner, **prompt, places=places, queries=queries, call=call
            ) as record:
                yield
            if any(record.entered):
                stats = replace(stats, layer=record.stats(stats.tokens_after / stats.tokens_before))
        self._own.stats = stats  # other calls may have been made from within

    def _check_cache(self, cache: Cache | None, short: ShortPrompt | None) -> None:
        ids, question_aware = None if short is None else short.input_ids, Signal.TEXT in self.pruner.wants
        check_cache(cache, ids, self.adapter.pruned_token_ids, question_aware=question_aware)

    def _check_step(self, kwargs: dict[str, Any]) -> None:
        """Refuse a step after a direct call with video whose positions stock code would count wrongly."""
        cache = cache_of(kwargs)
        held = None if cache is None else remembered_prompt(cache, self.adapter.pruned_token_ids)
        if held is None:
            return
        mask, new = kwargs.get("attention_mask"), kwargs.get("input_ids")
        if self.adapter.positions_are_kept:
            problem = "kept tokens retain their positions, which stock code does not know, so position_ids are needed"
        elif mask is not None and new is not None and mask.shape[-1] != int(cache.get_seq_length()) + new.shape[1]:
            problem = f"attention_mask has {mask.shape[-1]} columns, as many as before pruning"
        else:
            return
        raise TangoError(f"the cache holds a pruned prompt of {held.shape[1]} tokens; {problem}. Use generate")


def prune(
    model: nn.Module,
    method: str | Pruner | LayerPruner | Plan = "tango",
    *,
    layer_pruner: LayerPruner | str | None = None,
    mean_retention_ratio: float | None = None,
    saliency: str | None = None,
    positions: str | None = None,
    reuse: bool | None = None,
    tower: TowerMerger | str | None = None,
    keep_newlines: bool | None = None,
    images: bool | None = None,
    preset: str | None = None,
    **options: Any,
) -> Pruning:
    """Prune the visual tokens of every video that `model` is given from now on.

    Use it as a context manager, or call `remove()` on the result. Text is not pruned, nor are images unless `images`
    says so. The model's weights and class are not touched, and `remove()` leaves no hook or attribute behind.

    Logits processors, stopping criteria and streamers see the prompt that the caller gave. Logits of direct calls have
    that prompt's length; in training mode with labels they have the short prompt's, since the loss is computed already
    and long logits would take gigabytes. The cache that a pruned call returns holds the short prompt: `generate`
    continues it if the same video is given again, and refuses it otherwise. Where kept tokens retain their positions
    (Qwen-VL, and `positions="kept"`), steps after a direct call need `position_ids`. Stray placeholders are refused.

    Args:
        model: a stock transformers model, e.g. `LlavaOnevisionForConditionalGeneration`. It may be wrapped by
            `torch.compile`, by PEFT with adapters in the layers, or by DistributedDataParallel, before or after this
            call. Direct calls with video of a compiled model run uncompiled.
        method: a name from `available_methods()`, a pruner, or a `Plan`. With an intra-LLM method all tokens enter the
            LLM, and `retention_ratio` is the mean over its layers, unless the layer pruner is built already.
        layer_pruner: prune again inside the LLM: a layer pruner, or a name from `available_layer_pruners()`.
        mean_retention_ratio: in place of `retention_ratio`, the fraction kept on average over the LLM's layers. With
            a layer pruner, more tokens then enter the LLM (section 5.1 of the paper).
        saliency: "p-attn" (attention of the tower's pooling query; `tango.load` brings SigLIP's), "attn" (mean
            attention received in the tower's last used block), or a registered name. None: the method's own.
        positions: for LLaVA, "contiguous" (the default, as in the paper's release) numbers the tokens that the LLM sees
            from 0, and "kept" gives every token its position in the unpruned prompt. For Qwen-VL, which always keeps
            these, "correct" (the default) computes them as in training, "stock" as this transformers release does.
        reuse: encode equal frames of a video once; features are then equal up to rounding (see `tango.models.reuse`).
        tower: merge frames in the tower: a merger, or a name from `available_tower_mergers()`. Ratios mean all frames.
        keep_newlines: for LLaVA-Video, keep the newlines of rows without kept tokens, too.
        images: prune images, too, each as a video of one frame: for Qwen-VL, and by methods that need no time.
        preset: settings of the method's authors for a model family, by a name that `tango methods` lists; others win.
        **options: fields of the method, such as `retention_ratio=0.1`.
    Raises:
        UnknownNameError, OptionError: no such method or option, or not for this model.
        UnsupportedModelError: no adapter for this model, none that prunes inside its decoder, or an unknown wrapper.
        MissingSignalError, BudgetError: the model cannot supply what the method needs, or reach a ratio.
        TangoError: the model is pruned already.
    Example:
        >>> with tango.prune(model, "tango", retention_ratio=0.1) as pruning:
        ...     tango.answer(model, processor, "clip.mp4", "what color is plain")
        'cyan'
    """
    others: dict[str, Any] = {"layer_pruner": layer_pruner, "saliency": saliency, "positions": positions}
    others |= {"mean_retention_ratio": mean_retention_ratio, "reuse": reuse, "tower": tower, "preset": preset}
    plan = _plan(method, options, others | {"keep_newlines": keep_newlines, "images": images})
    return _pruned(_adapted(model, plan), plan)


def _plan(method: str | Pruner | LayerPruner | Plan, options: dict[str, Any], others: dict[str, Any]) -> Plan:
    given = [*options, *(name for name, value in others.items() if value is not None)]
    if isinstance(method, Plan) and given:
        raise OptionError(f"a plan is complete; leave out {', '.join(given)}, or set it there")
    return method if isinstance(method, Plan) else Plan.of(method, options, **others)


def _pruned(adapter: Adapter, plan: Plan) -> Pruning:
    """Check the plan against the model and begin."""
    pruner, inside = plan.pruners(1 if plan.layer_pruner is None else len(adapter.decoder.layers))
    if inside is not None:
        check_layers(inside, adapter.decoder)
    adapter.check(pruner.needs, pruner.name)
    if pruning_of(adapter.model) is not None:
        raise TangoError("this model is pruned already; remove() the first pruning before adding another")
    if plan.keep_newlines and adapter.newlines != "row":
        raise OptionError(f"keep_newlines is for models with a newline after every row; {adapter.title} has none")
    if plan.tower is not None:
        adapter.check_merger(plan.tower)
    if plan.images:
        check_images(adapter)
    adapter.reuse, adapter.keep_newlines, adapter.tower_merger = plan.reuse, plan.keep_newlines, plan.tower
    adapter.images = plan.images
    bound = None if inside is None else inside.bind(adapter.model)
    return Pruning(adapter.model, pruner.bind(adapter.model), adapter, bound)


def _adapted(model: nn.Module, plan: Plan) -> Adapter:
    """The adapter of this model."""
    model, family = unwrap(model)
    chooses = "positions" in inspect.signature(family).parameters
    if not chooses and plan.positions != plan.pruner.default_positions:
        raise OptionError(f"{family.__name__} has no option positions")
    options: dict[str, Any] = {"positions": plan.positions} if chooses and plan.positions else {}
    return family(model, saliency=plan.saliency, **options)


def pruning_of(model: nn.Module) -> Pruning | None:
    """The pruning that is active on a model, or on the model in a wrapper that `prune` knows; None if there is none."""
    try:
        model, _ = unwrap(model)
    except UnsupportedModelError:
        return None
    return vars(model).get(_MARK)


def _refuse_replicas() -> None:
    raise TangoError("DataParallel copies the model for every call; a pruned one needs DistributedDataParallel instead")
