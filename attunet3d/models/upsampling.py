"""Trilinear upsampling as products with small matrices, one an axis."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def upsampled_sum(maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """The first map plus all others, each upsampled trilinearly to the size of the first.

    Trilinear interpolation acts on each axis by itself, and there is a matrix, with two entries a
    row. The matrices of the last axis stand side by side, so that one product adds the maps up:

        Σ_l (P_l ⊗ Q_l ⊗ R_l) m_l  =  [P₁ P₂ …] [(Q₁ ⊗ R₁) m₁; (Q₂ ⊗ R₂) m₂; …]

    Args:
        maps: (B, K, x, y, z) float32, the finest first.
        align_corners: Trilinear convention.
    """
    finest, *coarser = maps
    if not coarser:
        return finest
    size = finest.shape[2:]
    first: list[Tensor] = []
    rest: list[Tensor] = []
    for part in coarser:
        p, q, r = (
            interpolation(n, to, align_corners, part)
            for n, to in zip(part.shape[2:], size, strict=True)
        )
        first.append(p)  # (X, x)
        rest.append(q @ (part @ r.T))  # (B, K, x, Y, Z)
    stacked = torch.cat(rest, 2).flatten(3)  # (B, K, x₁ + x₂ + …, Y · Z)
    del rest  # of many classes as much again as the result
    return (torch.cat(first, 1) @ stacked).reshape(finest.shape).add_(finest)


def interpolation(length: int, to: int, align_corners: bool, like: Tensor) -> Tensor:
    """The matrix (to, length) of linear interpolation: what it makes of the unit vectors."""
    unit = torch.eye(length, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, to, mode="linear", align_corners=align_corners)[0].T
