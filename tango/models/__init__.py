"""Model families. Importing this package registers their adapters."""

from tango.models import llava_onevision
from tango.models.base import Adapter, register_adapter, supported_model_types
from tango.models.loading import default_num_frames, load

__all__ = ["Adapter", "default_num_frames", "llava_onevision", "load", "register_adapter", "supported_model_types"]
