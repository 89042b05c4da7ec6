"""Set-up of the whole suite. Keep the import hook above everything that imports `tango`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

try:
    import beartype  # noqa: F401
    import jaxtyping
except ImportError:  # without them the shape annotations are comments
    jaxtyping = None
else:  # every shape annotation is enforced; as everywhere in Python, an int may stand for a float
    jaxtyping.install_import_hook(
        ["tango.ops", "tango.methods", "tango.containers"],
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
    )
    from tango.containers import VisualTokens
    from tango.methods import available_pruners, pruner_class

    for cls in (
        VisualTokens,
        *map(pruner_class, available_pruners()),
    ):  # what users pass to these, they check themselves
        cls.__init__ = inspect.unwrap(cls.__init__)

torch.set_num_threads(1)  # on tensors this small threads only wait for each other, the more so under pytest-xdist
settings.register_profile("tango", derandomize=True, database=None, deadline=None, max_examples=25)
settings.load_profile("tango")


@pytest.fixture
def unchecked_annotations() -> Iterator[None]:
    """Switch the checks of annotations off: for calls that break them on purpose, and for speed (they cost 4x)."""
    if jaxtyping is None:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make Tango work through its data `size` items at a time, where it would take as many as fit into a cache."""

    def cut(size: int) -> None:
        def chunks(count: int, *_: object, **__: object) -> Iterator[slice]:
            return (slice(start, min(start + size, count)) for start in range(0, count, size))

        users = [m for name, m in sys.modules.items() if name.startswith("tango.") and hasattr(m, "chunks")]
        assert users
        for module in users:
            monkeypatch.setattr(module, "chunks", chunks)

    return cut
