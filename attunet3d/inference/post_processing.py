"""After the decision: connected components that are hardly ever right are left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from attunet3d.core import InferenceConfig, LabelMap, Regions, label_values
from attunet3d.imaging import Grid, drop_small_, keep_largest_


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """Which connected components of which labels stay."""

    keep_largest: tuple[int, ...]
    """Label values of which only the largest component is kept."""
    smallest_ml: Mapping[int, float]
    """By label value, the volume that a component must have to stay."""
    regions: Regions = field(default_factory=dict)
    """Where labels overlap, the values of each: components are those of all of them."""

    @classmethod
    def of(
        cls, config: InferenceConfig, labels: Mapping[int, str], regions: Regions | None = None
    ) -> "PostProcessing":
        """The post-processing that the settings ask for.

        Raises:
            SettingsError: A setting names a label that the model does not have.
        """
        values = label_values(config.smallest_ml, labels, "inference.smallest_ml")
        return cls(
            keep_largest=label_values(config.keep_largest, labels),
            smallest_ml=dict(zip(values, config.smallest_ml.values(), strict=True)),
            regions=regions or {},
        )

    def apply_(self, labels: LabelMap, grid: Grid) -> None:
        """Set the components of (I, J, K) in Fortran order that do not stay to 0, in place."""
        keep_largest_(labels, self.keep_largest, self.regions)
        fewest = {value: fewest_voxels(ml, grid) for value, ml in self.smallest_ml.items()}
        drop_small_(labels, fewest, self.regions)


def fewest_voxels(millilitres: float, grid: Grid) -> float:
    """The voxels of a component that has this volume; a rounding error less.

    Example:
        >>> import numpy as np
        >>> grid = Grid((9, 9, 9), np.diag([10.0, 10, 10, 1]))
        >>> fewest_voxels(3.0, grid) <= 3 < fewest_voxels(3.1, grid)
        True
    """
    return millilitres / grid.voxel_volume_ml * (1 - 1e-9)
