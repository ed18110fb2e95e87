"""A worker's process: it tells how far it is, and ends where it takes too long or is unwanted."""

import gzip
from pathlib import Path

import nibabel
import numpy as np

from attunet3d.cohort import ModelOptions
from attunet3d.serving import Worker
from tests.serving.conftest import scan_of


def test_a_process_is_ended_at_its_limit_or_when_unwanted_and_the_next_scan_gets_another(
    model: Path, tmp_path: Path
) -> None:
    content, inside = scan_of(1, tmp_path)
    scan, out, shares = tmp_path / "a" / "scan.nii.gz", tmp_path / "out", list[float]()
    scan.parent.mkdir()
    scan.write_bytes(content)
    worker = Worker(ModelOptions(models=[str(model)], device="cpu"))
    try:
        late = worker.segment(scan, out, 0, lambda: False, shares.append)
        assert late == "took longer than 0 s and was stopped"
        assert worker.segment(scan, out, 60, lambda: True, shares.append) == "cancelled"
        shares.clear()
        assert worker.segment(scan, out, 60, lambda: False, shares.append) is None
    finally:
        worker.kill()
    assert shares == sorted(shares)
    assert shares[-1] == 1
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress((out / "scan.nii.gz").read_bytes()))
    assert ((np.asarray(image.dataobj) > 0) == inside).all()
