"""Parts of a training run that a user can exchange, each a plain callable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from attunet3d.training.cached_case import CachedCase

# (B, C, X, Y, Z) float32 logits, (B, 1, X, Y, Z) class indices → scalar
Criterion = Callable[[Tensor, Tensor], Tensor]
# (1, X, Y, Z) float32 image, (1, X, Y, Z) uint8 label, generator → both, changed
Transform = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]
# a case, generator → the voxel (x, y, z) at the centre of the patch
Sampler = Callable[[CachedCase, np.random.Generator], Sequence[int]]
# a row of metrics.csv: "step" and what else is known then
Logger = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Components:
    """Your own parts for a `Trainer`; what is left out stays the package's.

    Args:
        network: (in_channels, out_channels) → a network. In training it returns logits, or a list
            of logits with the finest first; in evaluation the finest.
        loss: Of one scale: (logits, label) → scalar.
        transforms: Applied to each patch after the package's augmentation. Whatever is random in
            them is drawn from the generator, so that a resumed run sees the same patches.
        sampler: Where patches are taken.
        logger: Gets each row of `metrics.csv` as it is written.
    """

    network: Callable[[int, int], nn.Module] | None = None
    loss: Criterion | None = None
    transforms: tuple[Transform, ...] = ()
    sampler: Sampler | None = None
    logger: Logger | None = None
