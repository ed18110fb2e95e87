"""Grids in every orientation, smooth random logits on them, and their resampling by a reference."""

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from attunet3d.core import Box, Floats
from attunet3d.imaging.geometry import Grid
from attunet3d.inference.chunks import ChunkBuilder
from attunet3d.inference.sliding_window import Slab

OBLIQUE = np.linalg.qr(np.array([[1.0, 0.25, 0.1], [-0.25, 1.0, 0.2], [-0.1, -0.2, 1.0]]))[0]
OBLIQUE = OBLIQUE * np.sign(np.diag(OBLIQUE))
SHEARED = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
STRAIGHT = np.eye(3)
TURNS = {"straight": STRAIGHT, "oblique": OBLIQUE, "sheared": SHEARED}
ORDERS = [
    np.eye(3)[:, order] * signs
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def make_grid(
    shape: tuple[int | int, int | int, int | int],
    spacing: tuple[float, float, float] | Floats,
    turn: Floats = STRAIGHT,
    order: Floats = STRAIGHT,
) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = turn @ order @ np.diag(spacing)
    affine[:3, 3] = (40.0, -12.5, 700.0)
    return Grid(shape, affine)


def smooth(shape: tuple[int, ...], seed: int = 0, sigma: float = 1.5) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(ndimage.gaussian_filter(values, sigma) * 10).float()


def slabs(logits: torch.Tensor, size: int) -> list[Slab]:
    return [
        Slab(start, logits[..., start : start + size]) for start in range(0, logits.shape[-1], size)
    ]


def resampled(slabs: list[Slab], network: Grid, source: Grid) -> Iterator[tuple[Box, torch.Tensor]]:
    """Boxes of the scan and their resampled logits."""
    builder = ChunkBuilder(network, source, logits=True)
    for slab in slabs:
        for chunk in builder.add(slab):
            assert chunk.logits is not None
            yield from chunk.resampled(chunk.logits)


def assembled(
    pieces: Iterator[Any] | list[tuple[Box, torch.Tensor]], source: Grid, channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """All pieces in their places, and how often each voxel was covered."""
    whole, seen = torch.full((channels, *source.shape), torch.nan), torch.zeros(source.shape)
    for box, logits in pieces:
        assert tuple(logits.shape[1:]) == tuple(part.stop - part.start for part in box)
        whole[(slice(None), *box)] = logits
        seen[box] += 1
    return whole, seen


def reference(logits: torch.Tensor, network: Grid, source: Grid) -> Floats:
    """Linear in float64 by full affines and scipy: (K, I, J, K)."""
    index = np.stack(np.meshgrid(*map(np.arange, source.shape), indexing="ij"), -1)
    where = np.moveaxis(network.to_index(source.to_world(index)), -1, 0)
    return np.stack(
        [
            ndimage.map_coordinates(part.double().numpy(), where, order=1, mode="nearest")
            for part in logits
        ]
    )
