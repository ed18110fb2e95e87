"""Warns of scans that cover too little of the body."""

from attunet3d.imaging.volume import Volume

LEAST_MM = 30.0  # along each axis; a smaller scan shows a part of an organ at most


def coverage_warnings(volume: Volume) -> list[str]:
    """Describe why a scan is too small to recognise organs in it; empty if it is not.

    Args:
        volume: A scan.

    Returns:
        Sentences for the sidecar and for stderr.

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
