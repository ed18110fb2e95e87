"""Types that all rooms use: sizes, spacings, ranges, boxes and overlapping labels."""

from collections.abc import Mapping

Size = tuple[int, int, int]  # voxels along x, y, z
Triple = tuple[float, float, float]  # a number for each axis, in mm where it is a length
Range = tuple[int, int]  # start and stop
Box = tuple[slice, slice, slice]  # a cuboid of voxels; the slices have a start and a stop
Regions = Mapping[int, tuple[int, ...]]  # label: the values that make it up; else itself alone
