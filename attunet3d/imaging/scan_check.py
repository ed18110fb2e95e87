"""What is odd about a scan, in sentences for sidecars and for stderr."""

from attunet3d.imaging.volume import Volume

SAMPLES_PER_AXIS = 96
LEAST_MM = 30.0  # along each axis; a smaller scan shows a part of an organ at most


def scan_warnings(volume: Volume) -> list[str]:
    """All that is odd about a scan: its file, its values, and how much of the body it covers."""
    return [*volume.warnings, *hounsfield_warnings(volume), *coverage_warnings(volume)]


def hounsfield_warnings(volume: Volume) -> list[str]:
    """Describe what makes a scan's values look unlike Hounsfield units; empty if nothing does.

    A sub-sample of the voxels is examined. Known ways of losing the scale are named: values
    scaled to 0–1 or 0–255, and raw scanner values 1024 above HU.

    Example:
        >>> import numpy as np
        >>> from attunet3d.imaging.geometry import Grid
        >>> scan = Volume(np.full((8, 8, 8), -1000, np.int16), Grid((8, 8, 8), np.eye(4)))
        >>> hounsfield_warnings(scan)
        ['every voxel is -1000: there is nothing to segment']
    """
    steps = tuple(slice(None, None, max(1, n // SAMPLES_PER_AXIS)) for n in volume.array.shape)
    values = volume.array[steps]
    low, high = float(values.min()), float(values.max())
    if low == high:  # the sub-sample may have missed what little there is
        low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        return [f"every voxel is {low:g}: there is nothing to segment"]
    if low >= 0 and high <= 1:
        return ["values lie between 0 and 1: not HU; bring the scan in Hounsfield units"]
    if low >= 0 and high <= 255:
        return ["values lie between 0 and 255: not HU; bring the scan in Hounsfield units"]
    if low >= -10 and high > 600:
        return [
            f"values lie between {low:g} and {high:g}: probably raw scanner values, 1024 above HU"
        ]
    if low > -200:
        return [f"no value is below {low:g}: no air, so it may not be HU"]
    if low < -10_000 or high > 70_000:
        return [f"values lie between {low:g} and {high:g}: not HU"]
    return []


def coverage_warnings(volume: Volume) -> list[str]:
    """Describe why a scan is too small to recognise organs in it; empty if it is not.

    Example:
        >>> import numpy as np
        >>> from attunet3d.imaging.geometry import Grid
        >>> slice_of_5_mm = Grid((512, 512, 1), np.diag([0.7, 0.7, 5, 1]))
        >>> coverage_warnings(Volume(np.zeros(slice_of_5_mm.shape, np.int16), slice_of_5_mm))
        ['has a single slice; a 3D network needs the slices around it']
    """
    if min(volume.grid.shape) == 1:
        return ["has a single slice; a 3D network needs the slices around it"]
    sizes = zip(volume.grid.shape, volume.grid.spacing_mm, strict=True)
    extent = [count * spacing for count, spacing in sizes]
    if min(extent) >= LEAST_MM:
        return []
    covered = " × ".join(f"{millimetres:.3g}" for millimetres in extent)
    return [f"covers only {covered} mm; that is not enough to tell organs"]
