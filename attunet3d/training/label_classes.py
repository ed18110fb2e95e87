"""Which voxels of a prepared label belong to which class of the network.

A prepared label stores an index for each voxel. Without regions, index c is class c. With regions,
which overlap, the index is that of the label value, and a class is made of several of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from attunet3d.core import Config, Mask


@dataclass(frozen=True)
class LabelClasses:
    """The classes of a network and the values of label maps."""

    names: dict[int, str]
    """Name of each class by its value in label maps, sorted; background is 0."""
    values: tuple[int, ...]
    """The value that each index of a prepared label stands for."""
    regions: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """The indices that make up each class but the background, where classes overlap."""
    order: tuple[int, ...] = ()
    """Values of overlapping classes; each overwrites the ones before it."""

    @classmethod
    def of(cls, labels: dict[int, str], config: Config) -> "LabelClasses":
        """The classes that a configuration makes of a manifest's labels.

        Example:
            >>> regions = ["training.regions=[[1, 2], [2]]", "inference.regions_class_order=[1, 2]"]
            >>> names = {0: "background", 1: "whole", 2: "tumour"}
            >>> LabelClasses.of(names, Config().with_overrides(regions)).regions
            {1: (1, 2), 2: (2,)}
        """
        ignored, parts = config.training.ignore_index, config.training.regions
        names = {value: labels[value] for value in sorted(labels) if value != ignored}
        if not parts:
            return cls(names, tuple(names))
        values = (0, *sorted({value for part in parts for value in part}))
        indices = {value: tuple(map(values.index, part)) for value, part in config.regions.items()}
        regions = {index: indices[value] for index, value in enumerate(names) if value}
        return cls(names, values, regions, config.inference.regions_class_order)

    @property
    def written(self) -> tuple[int, ...]:
        """The index by which each class is written into a label, background first."""
        return tuple(map(self.values.index, self.names))

    def classes(self, values: Iterable[int]) -> tuple[int, ...]:
        """The classes of label values, sorted."""
        found = list(self.names)
        return tuple(sorted(found.index(value) for value in values))

    def parts(self, classes: Iterable[int]) -> tuple[int, ...]:
        """The indices that make up any of some classes, sorted."""
        return tuple(sorted({part for index in classes for part in self._parts(index)}))

    def mask(self, label: npt.NDArray[np.uint8], index: int) -> Mask:
        """The voxels of a prepared label that belong to a class."""
        found: Mask = np.isin(label, self._parts(index))
        return found

    def as_written(self, label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A prepared label as a network that is right everywhere would write it.

        Where regions overlap, the last in `order` wins; all indices of a region become one.
        """
        table = np.arange(256, dtype=np.uint8)
        for value in self.order:
            (index,) = self.classes([value])
            table[list(self.regions[index])] = self.values.index(value)
        written: npt.NDArray[np.uint8] = table[label]
        return written

    def _parts(self, index: int) -> Sequence[int]:
        return self.regions[index] if self.regions else (index,)
