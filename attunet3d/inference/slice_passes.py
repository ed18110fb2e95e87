"""Networks of slices over a whole volume, some planes at a time, in memory that does not grow.

    planes given      first − n … stop + n      every slice sees its n neighbours on each side
    planes answered   first … stop              the logits of one pass over the whole volume

Planes are whole: a body of 512 × 512 is segmented without windows, its slices in batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attunet3d.core import Size
from attunet3d.inference.forward_pass import ForwardPass
from attunet3d.inference.sliding_window import Slab, decisive_channels, pad, without_padding
from attunet3d.models import CHUNK_PIXELS, SliceNetwork

SLAB_VALUES = 2**24  # of logits at once: 64 MB


@dataclass(frozen=True)
class SlicePasses:
    """How the members of an ensemble, all of them networks of slices, go through a volume.

    Args:
        neighbours: Slices that an answer depends on, to either side.
        classes: Background included.
    """

    neighbours: int
    classes: int

    @classmethod
    def of(cls, networks: Sequence[nn.Module], classes: int) -> "SlicePasses | None":
        """For these networks; None where one is not a network of slices."""
        numbers = [part.neighbours for part in networks if isinstance(part, SliceNetwork)]
        return cls(max(numbers), classes) if len(numbers) == len(networks) else None

    def planes(self, image: Tensor) -> int:
        """Slices answered by one call: enough that little is computed for neighbours alone."""
        plane = image[0, ..., 0].numel()
        return max(8 * self.neighbours, SLAB_VALUES // (self.classes * plane), 1)

    def voxels(self, image: Tensor) -> int:
        """Voxels whose features are in memory together."""
        return min(image.numel(), max(image[0, ..., 0].numel(), CHUNK_PIXELS))

    def slab_bytes(self, image: Tensor) -> int:
        """Memory of one call beside features: its input, and its logits twice."""
        planes = min(image.shape[3], self.planes(image) + 2 * self.neighbours)
        values = 2 * (2 * self.neighbours + 1) + 2 * self.classes
        return 4 * values * planes * image[0, ..., 0].numel()

    @torch.no_grad()
    def slabs(
        self, image: Tensor, forward: ForwardPass, *, divisor: Size, all_channels: bool = False
    ) -> Iterator[Slab]:
        """The logits of `image`; every plane once, in order.

        Args:
            image: (C, X, Y, Z).
            forward: (1, C, x, y, z) → (1, K, x, y, z).
            divisor: Factor of the coarsest level along x, y, z; 1 along z.
            all_channels: Keep both channels of a two-channel output.
        """
        x, y = (
            -(-size // part) * part
            for size, part in zip(image.shape[1:3], divisor[:2], strict=True)
        )
        depth, planes = image.shape[3], self.planes(image)
        padded, margins = pad(image, (x, y, depth))
        for start in range(0, depth, planes):
            first, stop = max(0, start - self.neighbours), min(depth, start + planes)
            logits = forward(padded[None, ..., first : min(depth, stop + self.neighbours)])
            part = decisive_channels(logits, all_channels)[0, ..., start - first : stop - first]
            yield from without_padding(Slab(start, part.float()), margins, image.shape)
