"""Checks of values, for methods that look at them on the host anyway."""

from __future__ import annotations

import torch
from torch import Tensor


def check_finite(x: Tensor, names: str) -> None:
    """Refuse values that stem from NaN or infinity. Waits for the device.

    Raises:
        ValueError: `x` holds such a value; the message says that `names` do.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{names} contain NaN or infinity; was the vision tower run in a dtype it overflows?")
