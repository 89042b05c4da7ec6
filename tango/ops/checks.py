"""Checks that values are finite, for methods that look at them on the host anyway."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.errors import NotFiniteError


def check_finite(x: Tensor, names: str) -> None:
    """Refuse values that stem from NaN or infinity. Waits for the device.

    Raises:
        NotFiniteError: `x` holds such a value; the message blames `names`.
    """
    refuse_unless(bool(torch.isfinite(x).all()), names)


def check_finite_on_host(x: NDArray[np.float32], names: str) -> None:
    """`check_finite` of values that are on the host already."""
    refuse_unless(bool(np.isfinite(x).all()), names)


def refuse_unless(finite: bool, names: str) -> None:
    """Raise the error of `check_finite` unless the caller found the values to be finite."""
    if not finite:
        raise NotFiniteError(f"{names} contain NaN or infinity; was the vision tower run in a dtype it overflows?")
