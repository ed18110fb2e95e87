"""Probabilities that can be taken at their word: a temperature for the logits.

    p = softmax(l / T), or σ(l / T) where classes overlap

T minimises the negative log-likelihood of the validation cases' references (Guo et al. 2017,
equation 9). The last convolution is divided by it, so whatever reads the model has it: the doubt,
`inference.decision=dice`, saved probabilities, a bundle. The largest logit stays the largest.

All voxels count, also the many that are surely background: what they are left of probability adds
up to more than an organ when T is too large. Of those one in 64 is looked at, and counts 64 times.
The diagram shows the others: where a foreground class is, or has a probability of 0.01 or more.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from attunet3d.core import Floats, Size, read_json, whole_file
from attunet3d.evaluation import charts, figures
from attunet3d.inference import (
    Activation,
    Stitching,
    margins_of,
    probabilities_of,
    sliding_window_slabs,
)
from attunet3d.models import AttentionUNet3D
from attunet3d.training.cached_case import CachedCase
from attunet3d.training.label_classes import LabelClasses
from attunet3d.training.validation import OVERLAP

FAINT = 0.01
SURE = 64  # of the voxels below it one is looked at
MOST_VOXELS = 100_000  # of a case, drawn evenly
TEMPERATURES = 0.1, 10.0
BINS = 10
WHEN = "before", "after"
CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Voxels:
    """Voxels of which the answer is known.

    Args:
        margins: (K - 1, n) float64 logits of the foreground classes minus the background's.
        truth: (K - 1, n) whether the voxel belongs to the class.
        weights: (n,) how many voxels each stands for: 1, or `SURE`.
        activation: What turns logits into probabilities.
    """

    margins: Tensor
    truth: Tensor
    weights: Tensor
    activation: Activation

    def probabilities(self, temperature: float) -> Tensor:
        """(K - 1, n) of the foreground classes."""
        return probabilities_of(self.margins / temperature, self.activation)[1:]

    def loss(self, temperature: float) -> float:
        """Mean negative log-likelihood."""
        found = self.probabilities(temperature)
        if self.activation == "sigmoid":
            right = torch.where(self.truth, found, 1 - found)  # (K - 1, n)
        else:
            inside = self.truth.any(0)
            right = torch.where(inside, (found * self.truth).sum(0), 1 - found.sum(0))
        losses = -right.clamp_min(1e-12).log() * self.weights
        return float(losses.sum() / self.weights.sum())


def sample_voxels(
    cases: Sequence[CachedCase],
    forward: Callable[[Tensor], Tensor],
    window: Size,
    device: torch.device,
    labels: LabelClasses,
    activation: Activation,
    ignored: int | None = None,
) -> Voxels | None:
    """Voxels of the cases in which all classes were annotated.

    Args:
        cases: Not seen in training.
        forward: (B, 1, x, y, z) → (B, K, x, y, z) logits.
        window: Voxels of a window.
        device: Where `forward` works.
        labels: What the classes are.
        activation: What turns logits into probabilities.
        ignored: Label value of voxels that count nowhere.

    Returns:
        None where every voxel is decided.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    classes = range(1, len(labels.names))
    for case in cases:
        if case.annotated is not None:
            continue
        label = case.label()
        known = torch.from_numpy(np.stack([labels.mask(label, index) for index in classes]))
        counted = torch.from_numpy(np.asarray(label != (256 if ignored is None else ignored)))
        image = torch.from_numpy(case.image().astype(np.float32))[None].to(device)  # (1, X, Y, Z)
        whole = Stitching(all_channels=True)
        for slab in sliding_window_slabs(
            image, forward, window=window, overlap=OVERLAP, stitching=whole
        ):
            planes = slice(slab.start, slab.start + slab.logits.shape[-1])
            own = margins_of(slab.logits.double().cpu())  # (K - 1, X, Y, n)
            strongest = probabilities_of(own, activation)[1:].amax(0)
            open_ = counted[..., planes] & ((strongest >= FAINT) | known[..., planes].any(0))
            sure = counted[..., planes] & ~open_
            for chosen, weight in ((open_, 1), (sure, SURE)):
                kept = own[:, chosen][:, ::weight], known[..., planes][:, chosen][:, ::weight]
                parts.append((*kept, torch.full(kept[0].shape[1:], float(weight))))
    if not any(bool((weights == 1).any()) for *_, weights in parts):
        return None
    margins, truth, weights = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    step = -(-len(weights) // (MOST_VOXELS * len(cases)))
    return Voxels(margins[:, ::step], truth[:, ::step], weights[::step], activation)


def fit_temperature(voxels: Voxels) -> float:
    """The temperature of the largest likelihood.

    Example:
        >>> margins = torch.tensor([[2.0, 2.0, 2.0, 2.0]]).double()  # p = 0.88
        >>> truth = torch.tensor([[True, True, True, False]])        # right in 3 of 4
        >>> voxels = Voxels(margins, truth, torch.ones(4), "softmax")
        >>> round(float(voxels.probabilities(fit_temperature(voxels))[0, 0]), 3)
        0.75
    """
    low, high = np.log(TEMPERATURES)
    best = minimize_scalar(
        lambda log: voxels.loss(float(np.exp(log))), bounds=(low, high), method="bounded"
    )
    return float(np.exp(best.x))


def reliability(voxels: Voxels, temperature: float) -> Floats:
    """How often undecided voxels of a probability belong to the class.

    Returns:
        (bins, 3): mean probability, share that belongs to the class, number of voxels; bins of
        equal width that no voxel falls into are left out.
    """
    undecided = voxels.weights == 1
    found = voxels.probabilities(temperature)[:, undecided].flatten().numpy()
    truth = voxels.truth[:, undecided].flatten().numpy()
    return _binned(found, truth, np.ones_like(found))


def _binned(probabilities: Floats, shares: Floats, counts: Floats) -> Floats:
    """The rows of `reliability`, from probabilities with the share that is right and a count."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    totals = np.bincount(bins, counts, BINS)
    filled = totals > 0
    sums = (np.bincount(bins, counts * part, BINS) for part in (probabilities, shares))
    return np.stack([*(part[filled] / totals[filled] for part in sums), totals[filled]], 1)


def calibration_error(bins: Floats) -> float:
    """Mean distance of probability and share, weighted by the voxels (Naeini et al. 2015).

    Example:
        >>> round(calibration_error(np.array([[0.2, 0.1, 30.0], [0.9, 0.9, 10.0]])), 3)
        0.075
    """
    return float(np.average(abs(bins[:, 0] - bins[:, 1]), weights=bins[:, 2]))


def save_reliability(voxels: Voxels, temperature: float, folder: Path) -> None:
    """Write `calibration.json`, and the reliability diagram `calibration.png`, before and after."""
    bins = {when: reliability(voxels, t) for when, t in zip(WHEN, (1.0, temperature), strict=True)}
    _save(bins, {"temperature": temperature}, folder)


def merge_reliability(runs: Sequence[Path], folder: Path) -> None:
    """Write the same files for several runs together, where each of them has its own."""
    files = [run / CALIBRATION for run in runs]
    if not all(file.is_file() for file in files):
        return
    found = [read_json(file) for file in files]
    bins = {
        when: _binned(*np.array([row for one in found for row in one[when]["bins"]]).T)
        for when in WHEN
    }
    _save(bins, {"temperatures": [one["temperature"] for one in found]}, folder)


def _save(bins: Mapping[str, Floats], facts: Mapping[str, object], folder: Path) -> None:
    errors = {when: calibration_error(rows) for when, rows in bins.items()}
    content = {**facts} | {
        when: {"error": round(errors[when], 4), "bins": rows.round(6).tolist()}
        for when, rows in bins.items()
    }
    whole_file.write_text(folder / CALIBRATION, json.dumps(content, indent=1) + "\n")
    names = {f"{when} calibration: error {errors[when]:.3f}": bins[when] for when in bins}
    figures.save(charts.reliability_figure(names), folder / "calibration.png")


def divide_logits_(network: nn.Module, temperature: float) -> bool:
    """Divide the last convolution, in place; False where the network is not one of ours."""
    if not isinstance(network, AttentionUNet3D):
        return False
    last = network.final if isinstance(network.final, nn.Conv3d) else network.heads[0]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.div_(temperature)
    return True
