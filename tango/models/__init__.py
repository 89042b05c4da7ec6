"""Model families. Importing this package registers their adapters."""

from tango.models import (
    glm4v,
    llava_next_video,
    llava_onevision,
    llava_video,
    qwen2_5_omni,
    qwen2_5_vl,
    qwen3_vl,
    smolvlm,
    video_llama_3,
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
    "glm4v",
    "llava_next_video",
    "llava_onevision",
    "llava_video",
    "load",
    "qwen2_5_omni",
    "qwen2_5_vl",
    "qwen3_vl",
    "register_adapter",
    "smolvlm",
    "supported_model_types",
    "video_llama_3",
]
