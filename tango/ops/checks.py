"""Checks of values, for methods that look at them on the host anyway."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def check_finite(x: Tensor, names: str) -> None:
    """Refuse values that stem from NaN or infinity. Waits for the device.

    Raises:
        ValueError: `x` holds such a value; the message says that `names` do.
    """
    _refuse_unless(bool(torch.isfinite(x).all()), names)


def check_finite_on_host(x: NDArray[np.float32], names: str) -> None:
    """The same for values that are on the host already."""
    _refuse_unless(bool(np.isfinite(x).all()), names)


def _refuse_unless(finite: bool, names: str) -> None:
    if not finite:
        raise ValueError(f"{names} contain NaN or infinity; was the vision tower run in a dtype it overflows?")
