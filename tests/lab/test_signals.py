"""`tango.lab.signals`: measures against plain loops and known answers; sinks where they are, and nowhere else."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tango.containers import PrunedTokens
from tango.errors import OptionError
from tango.lab.signals.attention import find_peaks, peaks_touched, share_of_top, tokens_for
from tango.lab.signals.clusters import connected_parts, fragmentation
from tango.lab.signals.coverage import coverage
from tango.lab.signals.measures import attention_measures, cluster_measures, method_measures
from tango.lab.signals.sinks import find_sinks
from tango.methods import TangoPruner, build_pruner
from tests.synthetic import video_tokens


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def around(y: int, x: int, H: int, W: int) -> list[tuple[int, int]]:
    """A cell's neighbours, itself left out."""
    cells = itertools.product(range(max(0, y - 1), min(H, y + 2)), range(max(0, x - 1), min(W, x + 2)))
    return [cell for cell in cells if cell != (y, x)]


class TestPeaks:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("grid", [(5, 7), (1, 9), (3, 3)])
    def test_equal_plain_loops(self, seed, grid):
        (H, W), N = grid, grid[0] * grid[1]
        saliency = torch.randint(0, 9, (4, N), generator=generator(seed)).float() ** 3  # many ties
        found = find_peaks(saliency, grid)
        for t in range(4):
            values, mean = saliency[t].view(H, W).tolist(), float(saliency[t].mean())
            for y, x in itertools.product(range(H), range(W)):
                highest = values[y][x] > 2 * mean
                for cell in around(y, x, H, W):
                    other = values[cell[0]][cell[1]]
                    highest &= values[y][x] > other or (values[y][x] == other and (y, x) < cell)
                assert bool(found[t, y * W + x]) == highest

    def test_planted_modes_are_all_that_is_found(self):
        saliency = torch.full((2, 196), 0.01)
        for t, peaks in enumerate([(0, 100, 195), (7, 91)]):
            saliency[t, list(peaks)] = 1.0
            for p in peaks:  # each on a slope
                saliency[t, [q for q in (p - 1, p + 1) if 0 <= q < 196 and q // 14 == p // 14]] = 0.5
        assert find_peaks(saliency, (14, 14)).nonzero().tolist() == [[0, 0], [0, 100], [0, 195], [1, 7], [1, 91]]

    def test_flat_maps_have_none(self):
        assert not find_peaks(torch.ones(2, 25), (5, 5)).any()
        assert not find_peaks(torch.zeros(2, 25), (5, 5)).any()

    @pytest.mark.parametrize("seed", range(3))
    def test_touched_ones_equal_plain_loops(self, seed):
        H, W, g = 5, 6, generator(seed)
        peaks = torch.rand(4, H * W, generator=g) > 0.8
        peaks[3] = False
        chosen = torch.rand(4, H * W, generator=g).argsort(1)[:, :3]
        share, has = peaks_touched(peaks, chosen, (H, W))
        assert has.tolist() == [bool(row.any()) for row in peaks]
        for t in range(3):
            near = set()
            for n in chosen[t].tolist():
                near |= {divmod(n, W), *around(*divmod(n, W), H, W)}
            places = [divmod(n, W) for n in peaks[t].nonzero()[:, 0].tolist()]
            assert float(share[t]) == pytest.approx(sum(place in near for place in places) / len(places))


class TestTail:
    def test_known_answers(self):
        saliency = torch.tensor([[4.0, 0, 3, 1, 2, 0, 0, 0, 0, 0], [1.0] * 10])
        assert share_of_top(saliency, 0.1).tolist() == pytest.approx([0.4, 0.1])
        assert share_of_top(saliency, 0.25).tolist() == pytest.approx([0.9, 0.3])  # ceil(2.5) tokens
        assert share_of_top(saliency, 0.3).tolist() == pytest.approx([0.9, 0.3])
        assert tokens_for(saliency, 0.5).tolist() == pytest.approx([0.2, 0.5])
        assert tokens_for(saliency, 0.9).tolist() == pytest.approx([0.3, 0.9])

    def test_a_frame_without_attention_holds_nothing(self):
        assert share_of_top(torch.zeros(1, 10), 0.5).tolist() == [0.0]
        assert tokens_for(torch.zeros(1, 10), 0.5).tolist() == [1.0]


def pareto(seed: int, *shape: int, exponent: float = 1.0) -> torch.Tensor:
    """Heavy-tailed numbers: their mean is infinite at exponent 1."""
    return torch.rand(*shape, generator=generator(seed)).clamp_min(1e-6) ** (-1 / exponent)


class TestSinks:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("positions", [(28,), (28, 27, 41, 169, 11, 12)])  # the latter are those of SigLIP
    def test_planted_ones_are_found_at_their_positions(self, seed, positions):
        videos = []
        for i in range(5):
            saliency = pareto(100 * seed + i, 12, 196, exponent=1.5)
            saliency[:, list(positions)] = saliency.amax(1, keepdim=True) * 0.9
            videos.append(saliency)
        search = find_sinks(videos)
        assert search.decides
        assert sorted(sink.position for sink in search.sinks) == sorted(positions)
        assert all(sink.videos == 5 and sink.frames == 1.0 and sink.height > 2 for sink in search.sinks)

    def test_one_that_a_frame_in_ten_and_a_video_in_ten_lacks_is_found(self):
        videos = [torch.rand(10, 100, generator=generator(i)) for i in range(10)]
        for i, saliency in enumerate(videos):
            saliency[:, 42] = 9.0 if i else 0.0
            saliency[i, 42] = 0.0
        (sink,) = find_sinks(videos).sinks
        assert (sink.position, sink.videos) == (42, 9)
        assert sink.frames == pytest.approx(0.81)

    @pytest.mark.parametrize("exponent", [0.7, 1.0, 2.0])
    @pytest.mark.parametrize("num_videos", [1, 3, 4, 8])
    @pytest.mark.parametrize("seed", range(6))
    def test_none_is_reported_on_heavy_tailed_maps(self, seed, num_videos, exponent):
        """Whether every frame differs, or all frames of a video are the same."""
        moving = [pareto(1000 * seed + i, 16, 196, exponent=exponent) for i in range(num_videos)]
        still = [pareto(1000 * seed + i, 1, 196, exponent=exponent).expand(16, -1) for i in range(num_videos)]
        assert find_sinks(moving).sinks == ()
        assert find_sinks(still).sinks == ()

    @pytest.mark.parametrize("seed", range(6))
    def test_none_is_reported_where_attention_leans_to_the_centre(self, seed):
        y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
        lean = (-((y - 6.5) ** 2 + (x - 6.5) ** 2) / 50).exp().flatten()
        videos = [pareto(100 * seed + i, 16, 196, exponent=1.5) * lean for i in range(6)]
        assert find_sinks(videos).sinks == ()

    def test_none_is_reported_on_flat_maps_and_for_a_faint_preference(self):
        flat = torch.ones(8, 100)
        faint = flat.clone()
        faint[:, 42] = 1.5  # first in every frame, and nearly as low as all others
        assert find_sinks([flat] * 6).sinks == ()
        assert find_sinks([faint] * 6).sinks == ()
        assert find_sinks([torch.zeros(8, 100)] * 6).sinks == ()

    @pytest.mark.parametrize("num_videos", [1, 2])
    def test_too_few_videos_cannot_tell(self, num_videos):
        videos = [torch.rand(16, 196, generator=generator(i)) for i in range(num_videos)]
        for saliency in videos:
            saliency[:, 28] = 9.0
        search = find_sinks(videos)
        assert not search.decides
        assert search.sinks == ()
        assert (search.nearest.position, search.nearest.frames) == (28, 1.0)

    def test_the_number_of_videos_follows_from_chance(self):
        """Three videos whose highest ten of 196 positions never change: 196 (10/196)^3 = 0.026 agree by chance."""
        videos = [torch.ones(4, 196) for _ in range(3)]
        for saliency in videos:
            saliency[:, :10] = 30.0
        assert not find_sinks(videos).decides
        four = find_sinks([*videos, videos[0]])
        assert four.least_videos == 4
        assert four.chance == pytest.approx(196 * (10 / 196) ** 4)
        assert sorted(sink.position for sink in four.sinks) == list(range(10))

    def test_videos_of_other_grids_are_refused(self):
        with pytest.raises(OptionError, match=r"one grid, got tokens per frame \[100, 196\]"):
            find_sinks([torch.rand(4, 196), torch.rand(4, 100)])


def plain_parts(labels: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Connected parts of equal labels, by flooding."""
    left, parts = set(np.ndindex(labels.shape)), []
    while left:
        edge = [min(left)]
        part = set(edge)
        while edge:
            cell = edge.pop()
            for shift in itertools.product((-1, 0, 1), repeat=3):
                other = tuple(a + b for a, b in zip(cell, shift, strict=True))
                if other in left - part and labels[other] == labels[cell]:
                    part.add(other)
                    edge.append(other)
        left -= part
        parts.append(part)
    return parts


class TestFragmentation:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("shape", [(1, 5, 7), (4, 4, 4), (6, 1, 3)])
    def test_equals_flooding(self, seed, shape):
        labels = np.random.default_rng(seed).integers(0, 4, shape)
        parts = plain_parts(labels)
        found = connected_parts(labels)
        for part in parts:
            lowest = min(np.ravel_multi_index(cell, shape) for cell in part)
            assert {int(found[cell]) for cell in part} == {int(lowest)}
        by_label: dict[int, list[int]] = {}
        for part in parts:
            by_label.setdefault(int(labels[next(iter(part))]), []).append(len(part))
        several = [sizes for sizes in by_label.values() if sum(sizes) >= 2]
        largest = sum(max(sizes) / sum(sizes) for sizes in several) / len(several)
        assert fragmentation(labels) == pytest.approx((largest, sum(map(len, several)) / len(several)))

    def test_a_long_winding_part_is_one(self):
        labels = np.zeros((1, 9, 9), dtype=np.int64)
        labels[0, 1::4, :8] = 1
        labels[0, 3::4, 1:] = 1  # walls with a gap at alternate ends
        assert len(set(connected_parts(labels)[labels == 0].tolist())) == 1

    def test_single_tokens_are_no_clusters(self):
        assert fragmentation(np.arange(12).reshape(1, 3, 4)) == (1.0, 1.0)


class TestCoverage:
    def test_equals_plain_loops(self):
        tokens = video_tokens(seed=3, frames=9)
        pruned = TangoPruner(retention_ratio=0.1)(tokens)
        x, frame = tokens.features, (pruned.indices // 36).tolist()
        for within in (None, 0, 2):
            total = 0.0
            for t, n in itertools.product(range(9), range(36)):
                near = [i for i, other in enumerate(frame) if within is None or abs(other - t) <= within]
                cosines = [float(F.cosine_similarity(x[t, n], pruned.features[i], dim=0)) for i in near]
                total += max(0.0, *cosines, 0.0)
            assert coverage(tokens, pruned, within=within) == pytest.approx(total / (9 * 36), abs=1e-5)

    def test_tokens_kept_in_the_first_frame_alone_cover_frames_near_it(self):
        tokens = video_tokens(frames=8, scenes=1, static=1.0, seed=4)
        still = tokens.features[:1].expand(8, -1, -1).contiguous()
        tokens = type(tokens)(features=still, grid=tokens.grid, timestamps_s=tokens.timestamps_s)
        first = PrunedTokens(features=still[0], indices=torch.arange(36))
        assert coverage(tokens, first) == pytest.approx(1.0, abs=1e-5)
        assert coverage(tokens, first, within=2) == pytest.approx(3 / 8, abs=1e-5)

    def test_long_videos_are_measured_on_64_frames(self):
        tokens = video_tokens(frames=130, scenes=1)
        everything = build_pruner("uniform", retention_ratio=1.0)(tokens)
        assert coverage(tokens, everything, within=2) == pytest.approx(1.0, abs=1e-5)


class TestMeasures:
    def test_attention_is_that_of_the_unmasked_positions(self):
        tokens = video_tokens(seed=2, sinks=(3, 20))
        measured = attention_measures(tokens, TangoPruner(retention_ratio=0.2))
        masked = tokens.saliency.clone()
        masked[:, [3, 20]] = 0
        top = masked.sort(dim=1, descending=True).values[:, : math.ceil(0.1 * 36)].sum(1) / masked.sum(1)
        assert measured["mass_of_top"]["0.1"] == pytest.approx(float(top.mean()), abs=1e-6)
        assert measured["selected_per_frame"] == int(math.ceil(0.2 * 36) * 0.6)
        assert set(measured["peaks_touched"]) == {"top_k", "diverse", "random"}

    def test_clusters_of_a_repeated_texture_are_in_fewer_pieces_with_strope(self):
        """Two textures alternate in a chequerboard: similarity alone cannot tell a field from its twins elsewhere."""
        g, H = generator(0), 8
        textures = F.normalize(torch.randn(2, 48, generator=g), dim=-1)
        board = (torch.arange(H)[:, None] // 2 + torch.arange(H)[None] // 2) % 2
        x = textures[board.flatten()] + 0.05 * torch.randn(4, H * H, 48, generator=g)
        tokens = type(video_tokens())(
            features=x, grid=(H, H), timestamps_s=torch.arange(4.0), saliency=torch.rand(4, H * H, generator=g)
        )
        measured = cluster_measures(tokens, TangoPruner(retention_ratio=0.2))
        assert measured["segments"] >= 1
        assert measured["seconds"]["largest_part"] > measured["none"]["largest_part"] + 0.1
        assert measured["seconds"]["parts"] < measured["none"]["parts"]
        assert measured["frames"] == measured["seconds"]  # a frame a second

    def test_methods_that_refuse_are_named_and_the_others_measured(self):
        tokens = video_tokens()
        seen: list[str] = []
        excluded: dict[str, str] = {}
        bare = type(tokens)(features=tokens.features, grid=tokens.grid, timestamps_s=tokens.timestamps_s)
        pruners = [build_pruner(name, retention_ratio=0.25) for name in ("tango", "uniform")]
        (row,) = method_measures(bare, pruners, excluded, seen.append)
        assert seen == ["tango", "uniform"]
        assert "saliency" in excluded["tango"]
        assert (row["method"], row["kept"], row["share"]) == ("uniform", 72, 0.25)
        assert 0 < row["covered_within_2_frames"] <= row["covered"] <= 1

    def test_random_choice_is_the_same_every_time(self):
        measured = [attention_measures(video_tokens(), TangoPruner()) for _ in range(2)]
        assert measured[0] == measured[1]
        assert Counter(map(type, measured[0]["mass_of_top"].values())) == {float: 6}
