"""Types of tuples that all rooms use: sizes, spacings, ranges and boxes."""

Size = tuple[int, int, int]  # voxels along x, y, z
Triple = tuple[float, float, float]  # a number for each axis, in mm where it is a length
Range = tuple[int, int]  # start and stop
Box = tuple[slice, slice, slice]  # a cuboid of voxels; the slices have a start and a stop
