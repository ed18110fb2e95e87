"""Trilinear upsampling as products with small matrices, one per axis.

up(m)  =  (P ⊗ Q ⊗ R) m        P (X, x), Q (Y, y), R (Z, z): two entries per row
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sum_upsampled(maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Sum maps, each upsampled trilinearly to the size of the first.

    The matrices of the first axis are concatenated, so that one product adds the maps up:

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
            interpolation_matrix(n, to, align_corners, part)
            for n, to in zip(part.shape[2:], size, strict=True)
        )
        first.append(p)  # (X, x)
        rest.append(q @ (part @ r.T))  # (B, K, x, Y, Z)
    stacked = torch.cat(rest, 2).flatten(3)  # (B, K, x₁ + x₂ + …, Y · Z)
    del rest  # with many classes it is as large as the result
    return (torch.cat(first, 1) @ stacked).reshape(finest.shape).add_(finest)


def interpolation_matrix(length: int, to: int, align_corners: bool, like: Tensor) -> Tensor:
    """The matrix (to, length) of linear interpolation, made by interpolating unit vectors."""
    unit = torch.eye(length, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, to, mode="linear", align_corners=align_corners)[0].T
