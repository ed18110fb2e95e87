"""Names for tuples that many rooms pass on: sizes, spacings, ranges and boxes."""

Size = tuple[int, int, int]  # voxels along x, y, z
Triple = tuple[float, float, float]  # a number for each axis, in mm where it is a length
Range = tuple[int, int]  # first index, and the first one beyond
Box = tuple[slice, slice, slice]  # a cuboid of voxels; the slices have a start and a stop
