"""tango.batched.rotation: some tokens of a video, rotated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tango.batched.rotation import gather_rotated
from tango.ops.segmentation import adjacent_similarity
from tango.ops.strope import rope_sections, strope, strope_rotations
from tests.ops.test_strope import randn


class TestGatherRotated:
    GRID = (3, 4)
    SECONDS = torch.tensor([0.0, 0.5, 1.75, 9.0, 9.5])

    def gather(self, x: Tensor, tokens: list[int]) -> Tensor:
        _, inverse_norms = adjacent_similarity(x)
        rotations = strope_rotations(
            self.SECONDS, self.GRID, rope_sections(x.shape[-1]), base_time=1e4, base_space=1e3, device=x.device
        )
        ids, out = torch.tensor(tokens, dtype=torch.long), torch.full((len(tokens), x.shape[-1]), torch.nan)
        found = gather_rotated(x.flatten(0, 1), inverse_norms.flatten(), ids, self.GRID, rotations, out=out)
        assert found.data_ptr() == out.data_ptr()
        return found

    @pytest.mark.parametrize("tokens", [list(range(60)), [59], [0, 14, 14, 3, 50, 49]], ids=len)
    @pytest.mark.parametrize("size", [1, 4, 100])
    def test_equals_rotating_everything(
        self, cut_into_blocks: Callable[[int], None], tokens: list[int], size: int
    ) -> None:
        x = 7 * randn(5, 12, 20)
        expected = strope(F.normalize(x, dim=-1), self.SECONDS, self.GRID).flatten(0, 1)[tokens]
        cut_into_blocks(size)
        torch.testing.assert_close(self.gather(x, tokens), expected, rtol=0, atol=1e-6)

    def test_no_token(self) -> None:
        assert self.gather(randn(5, 12, 20), []).shape == (0, 20)

    def test_half_precision_is_computed_in_float32(self) -> None:
        x = randn(5, 12, 20).half()
        assert torch.equal(self.gather(x, [1, 5, 25]), self.gather(x.float(), [1, 5, 25]))

    def test_leaves_its_input_alone(self) -> None:
        x = randn(5, 12, 20)
        before = x.clone()
        self.gather(x, list(range(60)))
        assert torch.equal(x, before)
