"""Model families. Importing this package registers their adapters."""

from tango.models import llava_onevision
from tango.models.base import Adapter, register_adapter, supported_model_types
from tango.models.loading import load

__all__ = ["Adapter", "llava_onevision", "load", "register_adapter", "supported_model_types"]
