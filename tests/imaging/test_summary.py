"""What `info` says of a scan."""

from pathlib import Path

import nibabel
import numpy as np

from attunet3d.imaging import read_volume
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.summary import scan_summary
from attunet3d.imaging.volume import Volume

SHEARED = np.array([[1.0, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


def test_a_files_header_is_told_with_its_units(tmp_path: Path) -> None:
    array = np.linspace(-1024, 800, 4 * 5 * 6).reshape(4, 5, 6).astype(np.int16)
    image = nibabel.Nifti1Image(array, np.diag([-2000.0, -2000, 3000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "ct.nii.gz")
    lines = scan_summary(read_volume(tmp_path / "ct.nii.gz")).splitlines()
    found = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert found["voxels"] == "4×5×6"
    assert found["spacing"] == "2×2×3 mm"
    assert found["orientation"].startswith("LPS ")
    assert found["values"] == "-1024 to 800 HU, int16"
    assert found["header"] == "NIfTI-1, lengths in micrometres"


def test_axes_that_are_not_at_right_angles_and_odd_values_are_told() -> None:
    scan = Volume(np.zeros((4, 4, 4), np.int16), Grid((4, 4, 4), SHEARED), warnings=("odd",))
    text = scan_summary(scan)
    assert "not at right angles" in text
    assert "warning      odd" in text
    assert "every voxel is 0" in text
