"""Model families. Importing this package registers their adapters."""

from tango.models import (
    gemma4,
    glm4v,
    llava_next_video,
    llava_onevision,
    llava_video,
    perception_lm,
    qwen2_5_omni,
    qwen2_5_vl,
    qwen3_vl,
    smolvlm,
    video_llama_3,
    video_llava,
)
from tango.models.base import (
    Adapter,
    EncodedImages,
    EncodedVideos,
    adapter_class,
    families_that_merge,
    families_with,
    register_adapter,
    supported_model_types,
)
from tango.models.loading import default_num_frames, load

__all__ = [
    "Adapter",
    "EncodedImages",
    "EncodedVideos",
    "adapter_class",
    "default_num_frames",
    "families_that_merge",
    "families_with",
    "gemma4",
    "glm4v",
    "llava_next_video",
    "llava_onevision",
    "llava_video",
    "load",
    "perception_lm",
    "qwen2_5_omni",
    "qwen2_5_vl",
    "qwen3_vl",
    "register_adapter",
    "smolvlm",
    "supported_model_types",
    "video_llama_3",
    "video_llava",
]
