"""The contract between Tango and a model family. Adapters are the only code that knows transformers' insides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from tango.containers import ALL_SIGNALS, PrunedTokens, Signal, VisualTokens
from tango.errors import MissingSignalError, UnsupportedModelError
from tango.extensions import load_group
from tango.models.about import About
from tango.models.calls import Call, Inputs
from tango.models.merging import MergedFrames, Merger
from tango.models.placement import device_of
from tango.models.pooling_head import PoolingHead
from tango.models.processors import stock
from tango.models.processors.protocol import ChatProtocol
from tango.models.questions import embedded_questions
from tango.models.reuse import Distinct, Reuse, distinct_frames
from tango.models.splice import ShortPrompt
from tango.models.weights import read_model
from tango.ops.llm_shapes import Newlines
from tango.ops.saliency import PoolingQuery, saliency_function
from tango.profiling import StageTimer
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Text models, by `model_type`, with plainly causal masks, and with layers whose `self_attn` follows `input_layernorm`
# and calls transformers' attention function. How they rotate does not matter.
DECODERS = (
    *("glm4v_moe_text", "glm4v_text", "llama", "mistral", "qwen2", "qwen2_5_omni_text", "qwen2_5_vl_text"),
    *("qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_vl_moe_text", "qwen3_vl_text"),
)

# Fields of `VisualTokens` that come from the tower, frame by frame.
TOKEN_FIELDS = ("features", *(ALL_SIGNALS & ~(Signal.TIMESTAMPS | Signal.TEXT)).fields)

GROUP = "tango.models"  # the entry points that add families

TOWER_IS_COMPILED = "tower_is_compiled"  # attribute of a model

_ADAPTERS: dict[str, type[Adapter]] = {}

A = TypeVar("A", bound="type[Adapter]")


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedVideos:
    """The visual tokens of all videos of a batch.

    `extras` holds, for each video, features (T*N, D) for deeper layers of the LLM, where the family has such.

    Example:
        >>> tango.EncodedVideos(videos=[tokens]).videos[0].grid
        (6, 6)
    """

    videos: list[VisualTokens]
    extras: list[list[Tensor]] | None = None
    reuse: Reuse | None = None  # None: every frame passed through the tower
    merged: list[MergedFrames] | None = None  # of each video, if a tower method merged frames: `videos` hold those left


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImages:
    """All images of a batch: the id of their placeholder, features (placeholders, D), and the adapter's own extras.

    Example:
        >>> images = tango.EncodedImages(token_id=model.config.image_token_id, features=torch.zeros(36, 48))
    """

    token_id: int
    features: Tensor
    extras: Any = None


class Adapter(ABC):
    """Turns one family's inputs into visual tokens, and pruned tokens back into prompt embeddings.

    Args:
        saliency: a name from `available_saliency()`: "p-attn", attention of the vision tower's pooling query; "attn",
            mean attention received; or one that was registered.
    Raises:
        UnknownNameError: no such saliency.

    Example:
        >>> adapter = tango.models.adapter_class(model.config)(model, saliency="attn")
        >>> isinstance(adapter, tango.Adapter), adapter.title
        (True, 'LLaVA-OneVision')
    """

    title: ClassVar[str]  # the family's name as people write it
    model_class: ClassVar[str]  # the stock class that generates; a model must be an instance of it
    about: ClassVar[About] = About()
    position_rules: ClassVar[tuple[str, ...]] = ("contiguous",)  # names that `positions=` takes, the usual one first
    signals: ClassVar[Signal] = Signal.NONE  # what models of this family can supply; a single model may lack some
    consumed: ClassVar[frozenset[str]]  # inputs that this adapter uses up before the LLM runs
    own_inputs: ClassVar[frozenset[str]] = frozenset({"video_timestamps_s", FIRST_EQUAL})  # stock code never gets them
    default_num_frames: ClassVar[int]  # frames that the model usually sees
    video_input: ClassVar[str] = "pixel_values_videos"
    pooling_query: ClassVar[PoolingQuery] = "mean"  # what "p-attn" saliency means for this family's tower
    newlines: ClassVar[Newlines] = "none"  # which placeholders are newlines
    # Whether stock `generate` counts placeholders and wants grids for them; it then gets pads in their place.
    stock_counts_placeholders: ClassVar[bool] = False
    stock_is_right: ClassVar[bool] = True  # False: stock code lays out videos otherwise than the model was trained

    merges_in_tower: ClassVar[bool] = False  # whether a tower method can merge frames between its blocks
    prunes_images: ClassVar[bool] = False  # whether an image is laid out as a video of one frame, and so can be pruned

    reuse: bool = False  # whether frames with the same pixels are encoded once
    keep_newlines: bool = False  # whether the newline of a row stays where no token of the row does
    tower_merger: Merger | None = None  # the tower method
    images: bool = False  # whether images are pruned, too

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn"):
        saliency_function(saliency)
        self.model, self.saliency = model, saliency

    @classmethod
    def load_model(cls, folder: Path, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
        """Load the stock model of a checkpoint; `options` go to `from_pretrained`.

        Raises:
            CheckpointError: the weights do not belong to the model that the config describes.
        """
        from transformers import AutoModelForImageTextToText

        return read_model(AutoModelForImageTextToText, folder, config, **options)

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> ChatProtocol:
        """Make the processor of a checkpoint: the family's own, else the stock one, which needs torchvision.

        Args:
            tokenizer: None: the one in the folder.
        Raises:
            MissingPartError: torchvision is not installed.
        """
        if tokenizer is not None:
            raise UnsupportedModelError(f"{cls.title} takes the tokenizer of its checkpoint, and no other")
        return stock.wrapped(folder, default_num_frames=cls.usual_num_frames(config))

    @classmethod
    def usual_num_frames(cls, config: PretrainedConfig) -> int:
        """Frames that a checkpoint's model usually sees: the number in its config, else the family's."""
        return int(getattr(config, "default_num_frames", cls.default_num_frames))

    @classmethod
    @abstractmethod
    def tokens_per_step(cls, config: PretrainedConfig) -> int:
        """N, visual tokens per frame, or per group of frames encoded together, in a video of the usual size."""

    @classmethod
    def frames_per_step(cls, config: PretrainedConfig) -> int:
        """Frames that are encoded together."""
        del config
        return 1

    @classmethod
    def num_video_tokens(cls, config: PretrainedConfig, num_frames: int) -> int:
        """Placeholders that one video takes in an unpruned prompt, newlines included."""
        steps, N = math.ceil(num_frames / cls.frames_per_step(config)), cls.tokens_per_step(config)
        rows = steps * math.isqrt(N)  # frames are square: H = sqrt(N)
        return steps * N + {"none": 0, "video": 1, "row": rows}[cls.newlines]

    @classmethod
    def pooling_query_of(cls, config: PretrainedConfig) -> PoolingQuery:
        """What "p-attn" saliency means for the tower of one model, where towers within the family differ."""
        del config
        return cls.pooling_query

    @classmethod
    @abstractmethod
    def tower(cls, model: PreTrainedModel) -> PreTrainedModel:
        """The vision tower of a model: the module whose config says how it attends."""

    @classmethod
    @abstractmethod
    def tower_blocks(cls, model: PreTrainedModel) -> nn.ModuleList:
        """The blocks of the tower, in order."""

    @classmethod
    def compilable(cls, model: PreTrainedModel) -> list[tuple[nn.Module, str, Callable[..., object]]]:
        """What `tango.compile_tower` compiles, as (owner, name, function): the compiled function becomes the owner's
        attribute of this name. Empty where the family cannot be compiled."""
        del model
        return []

    def tower_scope(self) -> AbstractContextManager[object]:
        """A context entered while the model is pruned, in which the tower gives the same values in less time."""
        return nullcontext()

    @property
    def device(self) -> torch.device:
        """The device on which the tower takes pixels."""
        return device_of(self.tower(self.model))

    @property
    def text_model(self) -> object:
        """The LLM without its head; None: it is not where the known families have it."""
        inner = getattr(self.model, "model", None)
        return getattr(inner, "language_model", None) or getattr(inner, "text_model", None)

    @property
    def decoder(self) -> PreTrainedModel:
        """The text model, for pruning at the input of one of its layers.

        Raises:
            UnsupportedModelError: Tango cannot follow the attention of this text model.
        """
        decoder = self.text_model
        config = getattr(decoder, "config", None)
        found = getattr(config, "model_type", type(decoder).__name__)
        kinds = getattr(config, "layer_types", None) or ()
        if "linear_attention" in kinds:
            raise UnsupportedModelError(
                f"pruning at a layer does not work with linear attention, which {kinds.count('linear_attention')} of "
                f"{len(kinds)} layers of {found} use: its state cannot forget a token; prune pre-LLM"
            )
        if not isinstance(decoder, nn.Module) or found not in DECODERS or not hasattr(decoder, "norm"):
            raise UnsupportedModelError(f"pruning at a layer works with decoders {', '.join(DECODERS)}, not {found}")
        if "sliding_attention" in kinds or (not kinds and getattr(config, "sliding_window", None)):
            raise UnsupportedModelError("pruning at a layer does not work with sliding-window attention")
        return decoder

    @property
    def positions_are_kept(self) -> bool:
        """Whether `positions` gives positions that stock code cannot count by itself."""
        return True

    @classmethod
    def placeholder_id(cls, config: PretrainedConfig) -> int:
        """Id of the placeholder that stands for one visual token of a video in the prompt."""
        return config.video_token_id

    @property
    def video_token_id(self) -> int:
        """The `placeholder_id` of this model."""
        return self.placeholder_id(self.model.config)

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that stands for one token of an image."""
        return self.model.config.image_token_id

    @property
    def pruned_inputs(self) -> tuple[str, ...]:
        """Names of the inputs whose tokens are pruned."""
        return (self.video_input, "pixel_values") if self.images else (self.video_input,)

    @property
    def pruned_token_ids(self) -> tuple[int, ...]:
        """Ids of the placeholders of what is pruned."""
        return (self.video_token_id, self.image_token_id) if self.images else (self.video_token_id,)

    @property
    def guarded_token_id(self) -> int:
        """Id of a token that stands in prompts with videos alone: the LLM must not read it as if it were a word."""
        return self.video_token_id

    def check(self, needs: Signal, method: str) -> None:
        """Refuse a method that needs a signal this model cannot supply, before any work.

        Raises:
            MissingSignalError: a signal is missing; the message says what would help.
        """
        missing = needs & ~self.signals
        if missing:
            words = " and ".join(kind.words for kind in missing.kinds)
            others = ", ".join(families_with(needs)) or "no family"
            raise MissingSignalError(
                f"{method} needs {words}, which the {self.title} adapter does not supply; it works with {others}"
            )

    def holds_video(self, inputs: Inputs) -> bool | None:
        """Whether a call with these inputs has a video to prune, or an image that is pruned, too. Other calls go to
        stock code, without `own_inputs`.

        None: the inputs do not say whether they hold videos or images; `encode_videos` refuses them.
        """
        return any(inputs.get(name) is not None for name in self.pruned_inputs)

    @abstractmethod
    def encode_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        """Run tower, projector and pooling; return the tokens of every video, in the order of their placeholders.

        It runs within `tower_scope`.

        Args:
            inputs: what the model was called with. Here and below they hold `input_ids` (B, L), and `attention_mask`
                (B, L) or None.
        """

    def texts(self, inputs: Inputs, wants: Signal, placeholders: Sequence[int]) -> Sequence[Tensor | None]:
        """Input embeddings (Q, D) of the question about each video, if `wants` has TEXT.

        What counts as the question: `tango.models.questions.questions`. Labelled columns are what the model is trained
        to say, so they do not belong to it.

        Args:
            placeholders: how many each video has.
        Raises:
            PromptError: a prompt has no text beside its video.
        """
        if Signal.TEXT not in wants:
            return [None] * len(placeholders)
        ids = inputs["input_ids"].cpu()
        video, _ = self.placeholders(ids, inputs, None)
        beside = {self.video_token_id, *self.marks(ids, video)}
        return embedded_questions(self.model, inputs, "video", video, placeholders, beside)

    def marks(self, input_ids: Tensor, video: Tensor) -> set[int]:
        """Ids of marks beside frames that the model's config does not name, given the mask (B, L) of placeholders."""
        del input_ids, video
        return set()

    def check_merger(self, merger: Merger) -> None:
        """Refuse a tower method that this model's tower cannot run.

        Raises:
            UnsupportedModelError: the family's tower has no place for it.
            OptionError: it works after blocks that the tower does not have.
        """
        if not self.merges_in_tower:
            raise UnsupportedModelError(
                f"{merger.name} merges frames in the tower, which the {self.title} adapter cannot; "
                f"it works with {', '.join(families_that_merge())}"
            )

    def distinct_frames(self, inputs: Inputs, lengths: Sequence[int]) -> Distinct:
        """The frames to encode, given each video's number of frames, or of temporal steps.

        A compiled tower gets all of them: another number would compile it again.
        """
        reused = self.reuse and TOWER_IS_COMPILED not in vars(self.model)
        return distinct_frames(inputs if reused else {}, lengths)

    @abstractmethod
    def encode_images(self, inputs: Inputs) -> EncodedImages | None:
        """Encode all images, which are kept whole; None if there are none."""

    def encode_images_as_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        """As `encode_videos`, for the images: videos of one frame, at time 0. Families with `prunes_images` have it."""
        del inputs, wants, timer
        raise UnsupportedModelError(f"images of {self.title} are not pruned: leave out images=True")

    def placeholders(self, input_ids: Tensor, inputs: Inputs, images: EncodedImages | None) -> tuple[Tensor, Tensor]:
        """Two masks (B, L): the placeholders of videos, and those of images.

        They are told apart by their ids. A family that has one id for both overrides this.
        """
        del inputs
        nowhere = torch.zeros_like(input_ids, dtype=torch.bool)
        return input_ids == self.video_token_id, nowhere if images is None else input_ids == images.token_id

    def short_inputs(self, short: ShortPrompt) -> dict[str, object]:
        """Inputs that stock code needs with the short prompt besides ids, mask and positions, such as token types
        (B, S). They replace inputs of the same names."""
        del short
        return {}

    def beside_embeds(self, input_ids: Tensor) -> dict[str, object]:
        """Inputs that the model makes from ids and cannot make from embeddings, for a stretch (B, n) of the short
        prompt. Placeholders in that stretch are pads."""
        del input_ids
        return {}

    @abstractmethod
    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        """Return the embeddings (kept, D) of a video's kept placeholders, and the keep mask of all its placeholders.

        Separators such as newlines are placeholders too; the family's own rule decides which are kept.
        """

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Inputs) -> Tensor | None:
        """Positions (B, L) or (R, B, L) of the full prompt, which kept tokens retain.

        None: positions of the short prompt are contiguous.
        """
        del input_ids, attention_mask, inputs
        return None

    def prefill_scope(
        self, deeper: list[list[Tensor]], images: EncodedImages | None, short: ShortPrompt, call: Call
    ) -> AbstractContextManager[object]:
        """A context entered while the short prompt of a call passes through the model, such as one that hands features
        to deeper layers.

        Args:
            deeper: of each video, what `EncodedVideos.extras` has for the kept tokens, a (K, D) tensor per layer.
        """
        del deeper, images, short, call
        return nullcontext()


def register_adapter(*families: str) -> Callable[[A], A]:
    """Class decorator: use this adapter for models of these families (see `family`).

    Example:
        >>> from tango.models.llava_onevision import LlavaOnevisionAdapter
        >>> @tango.register_adapter("my_onevision")
        ... class MyOnevisionAdapter(LlavaOnevisionAdapter):
        ...     title = "My OneVision"
        ...     model_class = "MyOnevisionForConditionalGeneration"
        >>> "my_onevision" in tango.models.supported_model_types()
        True
    """

    def add(cls: A) -> A:
        for name in families:
            if name in _ADAPTERS:
                raise ValueError(f"family {name!r} already has adapter {_ADAPTERS[name].__qualname__}")
            _ADAPTERS[name] = cls
        return cls

    return add


def supported_model_types() -> list[str]:
    """Families that `tango.prune` and `tango.load` accept, sorted."""
    load_group(GROUP)
    return sorted(_ADAPTERS)


def families_with(signals: Signal) -> list[str]:
    """Families whose adapters supply all of these signals, sorted."""
    return [name for name in supported_model_types() if signals in _ADAPTERS[name].signals]


def families_that_prune_images() -> list[str]:
    """Families whose images can be pruned, sorted."""
    return [name for name in supported_model_types() if _ADAPTERS[name].prunes_images]


def families_that_merge() -> list[str]:
    """Families whose towers can merge frames between blocks, sorted."""
    return [name for name in supported_model_types() if _ADAPTERS[name].merges_in_tower]


def family(config: PretrainedConfig | None) -> str | None:
    """The name that an adapter is registered under: the config's `model_type`, unless models of one type differ."""
    name = getattr(config, "model_type", None)
    if name == "llava_onevision" and getattr(config, "mm_newline_position", None) == "grid":
        return "llava_video"
    # The whole model is the thinker and the parts that speak: its checkpoint is the thinker's, too.
    return "qwen2_5_omni_thinker" if name == "qwen2_5_omni" else name


def find_adapter(name: str | None) -> type[Adapter] | None:
    """The adapter of a family; None: there is none."""
    if name not in _ADAPTERS:
        load_group(GROUP)
    return _ADAPTERS.get(name or "")


def adapter_class(config: PretrainedConfig | str) -> type[Adapter]:
    """The adapter of a model, from its config or the name of its family.

    Raises:
        UnsupportedModelError: there is none; the message lists the supported families.

    Example:
        >>> tango.models.adapter_class("qwen2_5_vl").title
        'Qwen2.5-VL'
    """
    name = config if isinstance(config, str) else family(config)
    adapter = find_adapter(name)
    if adapter is None:
        known = ", ".join(supported_model_types())
        raise UnsupportedModelError(f"no adapter for model type {name!r}. Supported: {known}{load_group(GROUP)}")
    return adapter


def stock_is_right(model: PreTrainedModel) -> bool:
    """Whether the model's own `generate` handles videos as the model was trained; unknown families count as right."""
    adapter = find_adapter(family(getattr(model, "config", None)))
    return adapter is None or adapter.stock_is_right


def own_inputs(model: PreTrainedModel) -> frozenset[str]:
    """Names of the inputs for a model that its stock code does not know."""
    adapter = find_adapter(family(getattr(model, "config", None))) or Adapter
    return adapter.own_inputs


def pooling_head_of(model: PreTrainedModel) -> PoolingHead | None:
    """The head that `tango.load` put beside the model (a plain attribute, not part of its weights)."""
    return getattr(model, "pooling_head", None)
