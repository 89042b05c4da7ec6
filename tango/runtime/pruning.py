"""`prune`: token pruning on a stock transformers model, as a scoped and undoable change of one instance.

`generate` and `forward` of the instance are wrapped. A prompt with videos is encoded, pruned and shortened first;
stock code then runs on the short prompt as on any other, so caches, beams, batches and assisted decoding work.
While the short prompt passes through the model, a transient hook replaces its placeholders' embeddings.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tango.containers import PrunedTokens, VisualTokens
from tango.errors import OptionError, TangoError, UnsupportedModelError
from tango.methods import KeepAllPruner, LayerPruner, Plan, Pruner
from tango.models.base import Adapter, EncodedVideos
from tango.models.calls import Call, cache_of, remember_prompt, remembered_prompt
from tango.models.splice import ShortPrompt, shorten
from tango.models.unwrapping import unwrap
from tango.ops.checks import refuse_unless
from tango.ops.flops import check_layer
from tango.profiling import StageTimer
from tango.runtime.callers import CallersPrompt
from tango.runtime.layer_prune import last_prompt_columns, layer_pruning
from tango.runtime.overlay import Overlay
from tango.runtime.owned import PlaceholderGuard, replace_method
from tango.runtime.stats import PruningStats, VideoStats

_MARK = "tango_pruning"  # attribute of a pruned model


class Prepared(NamedTuple):
    """A prompt that is ready for the language model, and what must hold while it passes through."""

    short: ShortPrompt
    # Of every visual token that stays, newlines included: frame, and place in the frame; None: nobody prunes later.
    places: tuple[Tensor, Tensor] | None
    stats: PruningStats
    scope: AbstractContextManager[Any]


class Pruning:
    """Handle of a pruned model. `with` or `remove()` restores the model exactly as it was."""

    def __init__(self, model: Any, pruner: Pruner, adapter: Adapter, layer_pruner: LayerPruner | None = None):
        self.model, self.pruner, self.adapter, self.layer_pruner = model, pruner, adapter, layer_pruner
        self._own = threading.local()  # of every thread: `stats`, and the `call` that is running
        self._stack = ExitStack()
        self._removed = False
        self._install()

    @property
    def stats(self) -> PruningStats | None:
        """What the last call with video did, of those that the asking thread made; None before the first."""
        return getattr(self._own, "stats", None)

    def __enter__(self) -> Pruning:
        if self._removed:
            raise TangoError("this pruning was removed; call tango.prune again")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remove()

    def __reduce_ex__(self, _protocol: Any) -> Any:  # of copy.deepcopy, pickle and torch.save
        raise TangoError("a pruned model cannot be copied or pickled; remove() the pruning first")

    def remove(self) -> None:
        """Undo the pruning. Doing it twice is harmless."""
        self._removed = True
        self._stack.close()

    def _install(self) -> None:
        """Replace methods of this one instance; nn.Module calls the instance's own `forward`."""
        model = self.model
        stock = {name: getattr(model, name) for name in ("generate", "forward", "_get_logits_processor")}
        generate_names, forward_names = (list(inspect.signature(stock[n]).parameters) for n in ("generate", "forward"))

        def generate(*args: Any, **kwargs: Any) -> Any:
            kwargs.update(zip(generate_names, args, strict=False))
            if self._removed:
                return stock["generate"](**kwargs)
            with self._running() as call:
                return self._generate(stock["generate"], kwargs, call)

        def forward(*args: Any, **kwargs: Any) -> Any:
            kwargs.update(zip(forward_names, args, strict=False))
            if self._removed or kwargs.get(self.adapter.video_input) is None:
                if kwargs.get("position_ids") is None and not self._removed:  # stock `generate` always gives them
                    self._check_step(kwargs)
                return stock["forward"](**kwargs)
            return prune_and_forward(kwargs)

        @torch.compiler.disable  # what hooks and threads do cannot be traced
        def prune_and_forward(kwargs: dict[str, Any]) -> Any:
            with self._running() as call:
                return self._forward(stock["forward"], kwargs, call)

        def make_processors(**kwargs: Any) -> Any:
            call, make = self._call(), stock["_get_logits_processor"]
            if call is None or call.make_processors is None:
                return make(**kwargs)
            return call.make_processors(make, kwargs)

        calls = {"generate": generate, "forward": forward, "_get_logits_processor": make_processors}
        for name, call in {**calls, "_replicate_for_data_parallel": _refuse_replicas}.items():
            self._stack.callback(replace_method(model, name, call))
        guard = PlaceholderGuard(self.adapter.video_token_id, self._may_read_placeholders)
        self._stack.callback(model.get_input_embeddings().register_forward_pre_hook(guard).remove)
        vars(model)[_MARK] = self
        self._stack.callback(vars(model).pop, _MARK, None)

    def _call(self) -> Call | None:
        """The call that this thread is in, if what runs now belongs to it."""
        call = getattr(self._own, "call", None)
        return call if call is not None and call.own else None

    @contextmanager
    def _running(self) -> Iterator[Call]:
        """A new call of this thread; the one that it is made from, if any, stands aside."""
        outer: Call | None = getattr(self._own, "call", None)
        self._own.call = Call()
        try:
            with nullcontext() if outer is None else outer.aside():
                yield self._own.call
        finally:
            self._own.call = outer

    def _may_read_placeholders(self) -> bool:
        """Only as candidates that assisted decoding takes from the prompt; or where there are none, unlooked at."""
        call = self._call()
        return self._removed or getattr(self._own, "shortening", False) or (call is not None and call.passed)

    def _embed_short(self, ids: Tensor) -> Tensor:
        """Embeddings of ids (B, S) without placeholders, so that nobody need wait for the device to see that."""
        self._own.shortening = True
        try:
            return self.model.get_input_embeddings()(ids)
        finally:
            self._own.shortening = False

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any], call: Call | None = None
    ) -> Prepared:
        """Encode and prune all videos of a batch and shorten its prompt; `stats` then describe it.

        `generate` and `forward` of a pruned model do this by themselves.

        Raises:
            NotFiniteError: what a video was made into holds NaN or infinity, whatever the method.
        """
        adapter, timer = self.adapter, StageTimer(input_ids.device)
        inputs = {**inputs, "input_ids": input_ids, "attention_mask": attention_mask}
        encoded = adapter.encode_videos(inputs, self.pruner.wants, timer)
        with timer.stage("prune"):
            pruned = [self.pruner(video) for video in encoded.videos]
        with timer.stage("splice"):
            images = adapter.encode_images(inputs)
            laid_out = [adapter.lay_out(*pair) for pair in zip(encoded.videos, pruned, strict=True)]
            features, keep_mask = (torch.cat(parts) for parts in zip(*laid_out, strict=True))
            video, image = adapter.placeholders(input_ids, inputs, images)
            short = shorten(
                input_ids,
                attention_mask,
                self._embed_short,
                video=video,
                keep_mask=keep_mask,
                video_features=features,
                images=None if images is None else (image, images.features),
                positions=adapter.positions(input_ids, attention_mask, inputs),
                pad_token_id=_pad_token_id(self.model),
            )
        rows = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        before, after = _lengths(rows, short.attention_mask, _finite(encoded, pruned))
        kept = zip(encoded.videos, pruned, strict=True)
        self._own.stats = PruningStats(
            method=self.method,
            retention_ratio=self.pruner.retention_ratio,
            videos=tuple(_video_stats(video, len(p.indices)) for video, p in kept),
            entering_before=len(keep_mask),
            entering_after=len(features),
            prompt_before=before,
            prompt_after=after,
            timer=timer,
        )
        frames = [(len(video.features), own) for video, (_, own) in zip(encoded.videos, laid_out, strict=True)]
        places = None if self.layer_pruner is None else _places(frames)
        scope = adapter.prefill_scope(encoded, pruned, images, short, call or Call())
        return Prepared(short, places, self._own.stats, scope)

    def _generate(self, stock: Callable[..., Any], kwargs: dict[str, Any], call: Call) -> Any:
        if kwargs.get(self.adapter.video_input) is None:
            self._check_cache(cache_of(kwargs), None)
            return stock(**kwargs)
        for name in ("inputs_embeds", "mm_encoder_outputs"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} and {self.adapter.video_input} cannot both be given to a pruned model")
        inputs = kwargs.pop("inputs", None)
        ids = kwargs.pop("input_ids", inputs)
        if ids is None:
            raise ValueError(f"{self.adapter.video_input} needs input_ids beside it")
        mask = kwargs.pop("attention_mask", None)
        with torch.no_grad():
            short, places, stats, scope = self.encode(ids, mask, kwargs, call)
        self._check_cache(cache_of(kwargs), short)
        kwargs = {name: value for name, value in kwargs.items() if name not in self.adapter.consumed}
        kwargs.pop("position_ids", None)  # they describe the long prompt
        kwargs |= self.adapter.short_inputs(short)
        if short.retains_positions:  # else generate counts by itself
            kwargs["position_ids"] = short.position_ids
            if short.position_ids.dim() == 2:
                _check_positions(self.model, kwargs)
        prompt = CallersPrompt(ids, short.input_ids.shape[1], call)
        prompt.adapt(kwargs, self.model.generation_config)
        call.make_processors = prompt.processors
        overlay = Overlay(self.model, short, stats.timer, call, self.adapter)
        with scope, self._in_decoder(short, places, stats, call), overlay:
            output = stock(input_ids=short.input_ids, attention_mask=short.attention_mask, **kwargs)
        if not call.passed:
            raise TangoError("generate did not run the model that was pruned, so the video was not seen")
        if overlay.prefill_end is not None:
            stats.timer.add("decoding", overlay.prefill_end)
        return prompt.before(output)

    def _forward(self, stock: Callable[..., Any], kwargs: dict[str, Any], call: Call) -> Any:
        """Direct calls, `model(pixel_values_videos=..., labels=...)`: ids and videos become short embeddings."""
        if kwargs.get("input_ids") is None:
            raise TangoError(
                f"{self.adapter.video_input} needs input_ids beside it, not embeddings; adapters that put "
                "learnt tokens before the prompt cannot be used on a pruned model"
            )
        ids, mask = kwargs.pop("input_ids"), kwargs.pop("attention_mask", None)
        short, places, stats, scope = self.encode(ids, mask, kwargs, call)
        self._check_cache(cache_of(kwargs), short)
        kwargs = {name: value for name, value in kwargs.items() if name not in self.adapter.consumed}
        if kwargs.get("labels") is not None:
            kwargs["labels"] = short.gather_labels(kwargs["labels"])
        kwargs |= self.adapter.short_inputs(short) | self.adapter.beside_embeds(short.text_ids)
        kwargs["position_ids"] = short.position_ids
        wanted = kwargs.pop("logits_to_keep", 0)
        with scope, self._in_decoder(short, places, stats, call, kwargs.get("labels")):
            output = stock(inputs_embeds=short.inputs_embeds, attention_mask=short.attention_mask, **kwargs)
        if isinstance(output, Mapping):
            remember_prompt(cache_of(output), short.input_ids)
        labelled = kwargs.get("labels") is not None
        if labelled and self.model.training and not isinstance(wanted, Tensor) and not wanted:
            return output  # a training step has its loss, and is spared gigabytes of logits for columns that left
        return _with_long_logits(output, short, wanted, labelled=labelled)

    @property
    def method(self) -> str:
        """Name of what prunes: the method before the LLM, or the one inside it where all tokens enter."""
        inside = self.layer_pruner if isinstance(self.pruner, KeepAllPruner) else None
        return self.pruner.name if inside is None else inside.name

    @contextmanager
    def _in_decoder(
        self,
        short: ShortPrompt,
        places: tuple[Tensor, Tensor] | None,
        stats: PruningStats,
        call: Call,
        labels: Tensor | None = None,
    ) -> Iterator[None]:
        """While the short prompt passes: prune at a layer, if asked to, and complete `stats`."""
        if self.layer_pruner is None:
            yield
        else:
            queries = None if labels is None else last_prompt_columns(short.is_video, labels)
            prompt: dict[str, Any] = {"is_visual": short.is_video, "attention_mask": short.attention_mask}
            with layer_pruning(
                self.adapter.decoder, self.layer_pruner, **prompt, places=places, queries=queries, call=call
            ) as record:
                yield
            if any(record.entered):
                stats = replace(stats, layer=record.stats(stats.tokens_after / stats.tokens_before))
        self._own.stats = stats  # other calls may have been made from within

    def _check_cache(self, cache: Any, short: ShortPrompt | None) -> None:
        """A cache with a pruned prompt can only be continued by a prompt that begins with that very one."""
        held = None if cache is None else remembered_prompt(cache, self.adapter.video_token_id)
        if held is None or (
            short is not None and torch.equal(held, short.input_ids[:, : held.shape[1]].to(held.device))
        ):
            return
        raise TangoError(
            f"the cache (past_key_values) holds a pruned prompt of {held.shape[1]} tokens, which these input_ids do "
            "not begin with; leave out the cache, or give the conversation with its video again beside it"
        )

    def _check_step(self, kwargs: dict[str, Any]) -> None:
        """A step after a direct call with video: stock code must be able to count its positions by itself."""
        cache = cache_of(kwargs)
        held = None if cache is None else remembered_prompt(cache, self.adapter.video_token_id)
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
    model: Any,
    method: str | Pruner | LayerPruner | Plan = "tango",
    *,
    layer_pruner: LayerPruner | str | None = None,
    mean_retention_ratio: float | None = None,
    saliency: str | None = None,
    positions: str | None = None,
    **options: Any,
) -> Pruning:
    """Prune the visual tokens of every video that `model` is given from now on.

    Use it as a context manager, or call `remove()` on the result. Text and images pass through unpruned; the model's
    weights and class are not touched, and afterwards no hook or attribute is left behind.
    Logits processors, stopping criteria and streamers see the prompt that the caller gave, and logits of direct calls
    have its length (but those of the short prompt in training mode with labels, where the loss is done and they would
    take gigabytes). A cache that a pruned call returns holds the short prompt: `generate` goes on from it when the
    video is given again beside it, and refuses it otherwise; where kept tokens retain their positions (Qwen-VL, and
    `positions="kept"`) steps after a direct call need `position_ids`. While a model is pruned, placeholders that reach
    its LLM in another way, such as through a part of the model, are refused.

    Args:
        model: a stock transformers model, e.g. `LlavaOnevisionForConditionalGeneration`; also inside what
            `torch.compile` returns, a PEFT model with adapters in the layers, or DistributedDataParallel. They may be
            put around it afterwards, too. Direct calls with video of a compiled model run as if it were not compiled.
        method: a name from `available_methods()`, a pruner that is built already, or a `Plan`. For a method inside the
            LLM all tokens enter it, and `retention_ratio` means the average over its layers; a built one is taken as
            it is.
        layer_pruner: prune again at the input of a decoder layer; built, or a name from `available_layer_pruners()`.
        mean_retention_ratio: in place of `retention_ratio`, the fraction kept on average over the LLM's layers; with
            a layer pruner, more tokens then enter the LLM (section 5.1 of the paper).
        saliency: "p-attn" (attention of the tower's pooling query, as in the paper; `tango.load` brings SigLIP's),
            "attn" (mean attention received in the tower's last used block; needs nothing), or a registered
            name. None: the method's own.
        positions: LLaVA: "contiguous" (the default, as in the paper's release) numbers what the LLM sees from 0, with
            "kept" every token keeps its position in the unpruned prompt. Qwen-VL, whose kept tokens always do:
            "correct" (the default) as these models were trained, or "stock" as this transformers release computes them.
        **options: fields of the method, such as `retention_ratio=0.1`.
    Raises:
        UnknownNameError, OptionError: no such method or option, or none for this model.
        UnsupportedModelError: no adapter for this model, or none for pruning inside its decoder; or another wrapper.
        MissingSignalError: the model cannot supply what the method needs.
        BudgetError: a ratio is out of range or cannot be reached.
        TangoError: the model is pruned already.
    """
    others: dict[str, Any] = {"layer_pruner": layer_pruner, "mean_retention_ratio": mean_retention_ratio}
    others |= {"saliency": saliency, "positions": positions}
    given = [*options, *(name for name, value in others.items() if value is not None)]
    if isinstance(method, Plan) and given:
        raise OptionError(f"a plan is complete; leave out {', '.join(given)}, or set it there")
    plan = method if isinstance(method, Plan) else Plan.of(method, options, **others)
    adapter = _adapted(model, plan)
    pruner, inside = plan.pruners(1 if plan.layer_pruner is None else len(adapter.decoder.layers))
    for layer in () if inside is None else inside.layers:
        check_layer(layer, len(adapter.decoder.layers))
    adapter.check(pruner.needs, pruner.name)
    if pruning_of(adapter.model) is not None:
        raise TangoError("this model is pruned already; remove() the first pruning before adding another")
    bound = None if inside is None else inside.bind(adapter.model)
    return Pruning(adapter.model, pruner.bind(adapter.model), adapter, bound)


def _adapted(model: Any, plan: Plan) -> Adapter:
    """The model with its family's adapter."""
    options: dict[str, Any] = {} if plan.positions is None else {"positions": plan.positions}
    model, family = unwrap(model)
    if unknown := options.keys() - inspect.signature(family).parameters.keys():
        raise OptionError(f"{family.__name__} has no option {', '.join(sorted(unknown))}")
    return family(model, saliency=plan.saliency, **options)


def pruning_of(model: Any) -> Pruning | None:
    """The pruning that is active on a model, if any; a wrapper that `prune` sees through has that of its model."""
    try:
        model, _ = unwrap(model)
    except UnsupportedModelError:
        return None
    return vars(model).get(_MARK)


def _refuse_replicas() -> None:
    raise TangoError("DataParallel copies the model for every call; a pruned one needs DistributedDataParallel instead")


def _video_stats(video: VisualTokens, kept: int) -> VideoStats:
    T, N, _ = video.features.shape
    return VideoStats(frames=T, grid=video.grid, tokens_before=T * N, tokens_after=kept)


def _places(laid_out: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Frame of every placeholder that stays and its place in the frame, from each video's frames and placeholders.

    Numbers go on from video to video. A newline after the last frame counts as a frame of its own.
    """
    frames, cells, first_frame, first_cell = [], [], 0, 0
    for num_frames, keep_mask in laid_out:
        per_frame = len(keep_mask) // num_frames
        index = keep_mask.nonzero()[:, 0]
        frames.append(index // per_frame + first_frame)
        cells.append(index % per_frame + first_cell)
        first_frame, first_cell = first_frame + num_frames + 1, first_cell + per_frame
    return torch.cat(frames), torch.cat(cells)


def _finite(encoded: EncodedVideos, pruned: list[PrunedTokens]) -> list[Tensor]:
    """Of every video whether all that the LLM will see of it is a number, on its device."""
    deeper = encoded.extras or [[]] * len(pruned)
    parts = [[tokens.features, *layers] for tokens, layers in zip(pruned, deeper, strict=True)]
    return [torch.stack([torch.stack(x.detach().aminmax()) for x in part]).isfinite().all() for part in parts]


def _lengths(rows: Tensor, short: Tensor, finite: list[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt lengths before and after pruning. One read of the device brings them, and whether videos are finite."""
    flags = torch.stack([flag.to(rows.device) for flag in finite])
    numbers = torch.cat([rows.bool().sum(1), short.sum(1), flags]).tolist()
    B = len(rows)
    for video, flag in enumerate(numbers[2 * B :]):
        refuse_unless(bool(flag), f"features of video {video}")
    return tuple(numbers[:B]), tuple(numbers[B : 2 * B])


def _with_long_logits(output: Any, short: ShortPrompt, wanted: int | Tensor, *, labelled: bool) -> Any:
    """Logits at the length of the caller's ids, so that the caller's losses and metrics fit them."""

    def long(logits: Tensor) -> Tensor:
        rows = short.spread(logits)
        return rows[:, wanted] if isinstance(wanted, Tensor) else rows[:, -wanted:] if wanted else rows

    if isinstance(output, tuple):  # return_dict=False
        return tuple(long(x) if i == int(labelled) else x for i, x in enumerate(output))
    if isinstance(getattr(output, "logits", None), Tensor):  # some kernels compute a loss without them
        output.logits = long(output.logits)
    return output


def _pad_token_id(model: Any) -> int:
    """Any id will do: padding is masked. Prefer the model's own."""
    for source in (model.generation_config, model.config):
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(source, name, None)
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int):
                return value
    return 0


def _check_positions(model: Any, kwargs: Mapping[str, Any]) -> None:
    """Without a cache, and with flash attention in later chunks of a prefill, transformers takes gaps between positions
    for borders of several packed prompts."""
    config = kwargs.get("generation_config") or model.generation_config
    if kwargs.get("use_cache", config.use_cache) is False:
        raise OptionError("positions='kept' needs the cache; leave out use_cache=False, or take 'contiguous'")
    chunked = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
    if chunked and "flash" in str(model.config.get_text_config()._attn_implementation):
        raise OptionError("positions='kept' and flash attention need the prefill in one piece, not in chunks")
