"""Labels that make the Dice coefficient expected of each case largest (`inference.decision=dice`).

Each class has its best mask, {i : p_i > t_c}, by itself (see `expected_dice`). The masks of several
classes may overlap, and may leave voxels to none. A voxel that exactly one class claims gets its
label. With n_c such voxels of class c, s_c their sum of p, and D_c = n_c + μ_c + 1, one more voxel
of probability p changes the score of class c by

    2 / (D_c + 1) · (p − s_c / D_c).

A voxel that several classes claim goes to the claimant for which this is largest; one that no class
claims goes to the class for which it is largest (RankSEG-RMA: Wang and Dai, NeurIPS 2025). Where
each class has a sigmoid of its own there is no background among them, and such a voxel is none's.

The logits are walked twice, in little memory. The first pass, on the network's grid, counts
probabilities (thresholds are ratios of sums, which are the same on either grid). The second labels
the scan's voxels and puts those with no or several claimants aside until n_c and s_c are known.

Most of a scan need not be resampled. With the margins d_c = l_c − l_0, p_c ≤ σ(d_c), so a class
claims nothing where d_c ≤ logit(t_c) at all corners. Where Σ exp(d_c) ≤ 1, the background claims.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attunet3d.core import Floats, LabelMap
from attunet3d.imaging import Grid, extent
from attunet3d.inference.chunks import Chunk, ChunkBuilder, Ranges
from attunet3d.inference.expected_dice import (
    Activation,
    ProbabilityHistogram,
    Thresholds,
    expected_dice,
    margins_of,
    probabilities_of,
)
from attunet3d.inference.large_arrays import ArraySpool
from attunet3d.inference.sliding_window import Slab

FAINT = -16.0  # a margin below which a class's share of a softmax is below float32's rounding


class DiceDecision:
    """Takes all slabs of a scan, then labels it.

    Args:
        network: The network's grid.
        source: The scan's grid.
        values: The label value of each class, background first.
        labels: Label map of background on the scan's grid, in Fortran order; written to.
        activation: What turns logits into probabilities.
    """

    def __init__(
        self,
        network: Grid,
        source: Grid,
        values: Sequence[int],
        labels: LabelMap,
        activation: Activation,
    ) -> None:
        self._grids, self._labels = (network, source), labels
        self._values = torch.tensor(values, dtype=torch.uint8)
        self._activation: Activation = activation
        self._histogram = ProbabilityHistogram(len(values))
        self._slabs = ArraySpool()
        self._device = torch.device("cpu")

    def add(self, slab: Slab) -> None:
        """First pass: count the probabilities of a slab and keep its margins in float16."""
        margins = margins_of(slab.logits).half()
        self._histogram.add(probabilities_of(margins.float(), self._activation))
        self._device = margins.device
        self._slabs.add(margins.cpu().numpy())

    def decide(self) -> list[float]:
        """Second pass: write the labels; return the Dice expected of each foreground class."""
        network, source = self._grids
        scale = network.voxel_volume_ml / source.voxel_volume_ml
        thresholds = self._histogram.thresholds(scale)
        if self._activation == "sigmoid":
            thresholds.active[0] = False
        claims = _Claims(thresholds, self._values, self._labels, self._activation)
        builder, start = ChunkBuilder(network, source), 0
        for margins in self._slabs:
            # One channel is a margin; of several, the first is the background's logit, 0.
            logits = torch.from_numpy(margins).to(self._device)
            if len(logits) > 1:
                logits = torch.cat([torch.zeros_like(logits[:1]), logits])
            for chunk in builder.add(Slab(start, logits)):
                claims.settle(chunk)
            start += margins.shape[3]
        self._slabs.close()
        return claims.finish()


class _Claims:
    """Labels chunks by their claimants, and the voxels without a single one at the end."""

    def __init__(
        self, thresholds: Thresholds, values: Tensor, labels: LabelMap, activation: Activation
    ) -> None:
        self.values, self.labels, self.activation = values, labels, activation
        self.active, self.total = thresholds.active, thresholds.total
        self.least = torch.from_numpy(np.where(self.active, thresholds.least, np.inf)).float()
        self.least_margins = self._least_margins()
        # Voxels that one class alone claims; of the background, what it does not have.
        self.sizes: Floats = np.zeros(len(values))
        self.inside: Floats = np.zeros(len(values))
        self.voxels = 0
        self.aside = ArraySpool()  # indices and probabilities by turns

    def _least_margins(self) -> Tensor:
        """The margin (K - 1,) up to which a class leaves a voxel to the background."""
        if self.activation == "softmax" and not self.active[0]:
            return torch.full((len(self.values) - 1,), -math.inf)
        least = torch.logit(self.least[1:].double().clamp(max=1)).float()  # pruned: infinity
        if self.activation == "softmax":
            least.clamp_(max=-math.log(len(least)))
        return least

    def settle(self, chunk: Chunk) -> None:
        """Label the voxels of a chunk that one class claims."""
        self.voxels += math.prod(part.stop - part.start for part in chunk.box)
        least_margins = self.least_margins.to(chunk.margins.device)[:, None, None, None]
        claimed = (chunk.margins > least_margins).any(0).cpu()  # (P, R, C)
        if not claimed.any():
            return
        rows = claimed.any(2)
        lines = rows.any(1), rows.any(0), claimed.any(0).any(0)
        box = [extent(line.numpy()) for line in lines]
        for ranges in chunk.pieces(len(self.values), chunk.sampler.touching(box)):
            self._settle_piece(chunk, ranges)

    def _settle_piece(self, chunk: Chunk, ranges: Ranges) -> None:
        part = chunk.sampler.part(*ranges)
        (low, high), _ = part.planes.narrowed()
        (left, right), _ = part.rows.narrowed()
        peaks = chunk.margins[:, low:high, left:right].amax((1, 2, 3)).cpu()
        if not (peaks > self.least_margins).any():
            return
        least = FAINT if self.activation == "softmax" else self.least_margins
        present = (peaks > least).nonzero().flatten()
        margins = torch.stack([part(chunk.margins[index]) for index in present.tolist()])
        probabilities = probabilities_of(margins, self.activation)  # (k, p, r, c)
        classes = torch.cat([torch.zeros(1, dtype=torch.long), present + 1])
        thresholds, values = (
            table[classes].to(margins.device)[:, None, None, None]
            for table in (self.least, self.values)
        )
        claims = probabilities > thresholds
        count = claims.sum(0, dtype=torch.uint8)
        single = count == 1
        chosen = (claims * values).sum(0, dtype=torch.uint8) * single
        axes = chunk.sampler.target_axes
        target = torch.from_numpy(self.labels)[chunk.target(*ranges)]
        target.permute(axes).copy_(chosen)
        self._count(probabilities, claims & single, classes)
        several = (count != 1) if self.activation == "softmax" else (count > 1)
        place = several.nonzero().cpu()  # (n, 3), along the sampler's axes
        if len(place):
            full = torch.zeros(len(self.values), len(place))
            full[classes] = probabilities[:, several].cpu()
            first = [chunk.target(*ranges)[axis].start for axis in axes]
            steps = [int(np.prod(self.labels.shape[:axis])) for axis in axes]
            self.aside.add(((place + torch.tensor(first)) * torch.tensor(steps)).sum(1).numpy())
            self.aside.add(full.numpy())

    def _count(self, probabilities: Tensor, own: Tensor, classes: Tensor) -> None:
        """Add up what each class has alone; of the background, what it has not."""
        own = torch.cat([~own[:1], own[1:]])
        sizes = own.sum((1, 2, 3)).cpu().numpy()
        inside = (probabilities * own).sum((1, 2, 3), dtype=torch.float64).cpu().numpy()
        self.sizes[classes.numpy()] += sizes
        self.inside[classes.numpy()] += inside

    def finish(self) -> list[float]:
        """Label the other voxels; return the Dice expected of each foreground class."""
        sizes, inside = self.sizes, self.inside
        sizes[0], inside[0] = self.voxels - sizes[0], self.total[0] - inside[0]
        whole = sizes + self.total + 1
        mean, factor = inside / whole, 2 / (whole + 1)
        sizes, inside = sizes.copy(), inside.copy()
        flat = self.labels.T.reshape(-1)
        unclaimed = self.active if self.active.any() else np.ones_like(self.active)
        entries = iter(self.aside)
        for place, probabilities in zip(entries, entries, strict=True):
            claimed = probabilities > self.least.numpy()[:, None]
            eligible = np.where(claimed.any(0), claimed, unclaimed[:, None])
            gain = factor[:, None] * (probabilities - mean[:, None])
            chosen = np.where(eligible, gain, -np.inf).argmax(0)
            flat[place] = self.values.numpy()[chosen]
            sizes += np.bincount(chosen, minlength=len(sizes))
            own = probabilities[chosen, np.arange(len(chosen))]
            inside += np.bincount(chosen, own, len(inside))
        self.aside.close()
        parts = zip(inside[1:], sizes[1:], self.total[1:], strict=True)
        return [expected_dice(*part) for part in parts]
