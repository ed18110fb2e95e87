"""MetaImage and NRRD headers that point elsewhere or claim too much are refused unread."""

import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from attunet3d.core.errors import UserError
from attunet3d.imaging.volume import read_volume

MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
DimSize = {size}
ElementSpacing = 1 2 3
ElementType = MET_SHORT
ElementDataFile = {data}
"""
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: {size}\nencoding: raw\n{data}\n"


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".mhd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_the_library_writes_is_read(tmp_path: Path, ending: str, compressed: bool) -> None:
    array = np.arange(4 * 3 * 2, dtype=np.int16).reshape(2, 3, 4)
    path = tmp_path / f"scan{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path), compressed)
    assert np.array_equal(read_volume(path).array, array.T)


@pytest.mark.parametrize("size", ["2 2 2", "2\t2\t2", "  2  2\t2 "])
def test_sizes_may_be_separated_by_spaces_and_tabs(tmp_path: Path, size: str) -> None:
    values = np.arange(8, dtype=np.int16)
    head = NRRD.format(size=size, data="endian: little\n").encode()
    (tmp_path / "scan.nrrd").write_bytes(head + values.tobytes())
    assert np.array_equal(read_volume(tmp_path / "scan.nrrd").array.ravel("F"), values)


@pytest.mark.parametrize("inside", ["here.raw", "a b-1.raw"])
def test_voxels_beside_the_header_are_read(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).write_bytes(np.arange(8, dtype=np.int16).tobytes())
    (tmp_path / "scan.mhd").write_text(MHA.format(size="2 2 2", data=inside))
    assert read_volume(tmp_path / "scan.mhd").array.ravel("F").tolist() == list(range(8))


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".gipl"])
def test_a_scan_without_a_direction_is_read_with_a_warning(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(path))
    kept = [
        line
        for line in path.read_bytes().split(b"\n")
        if not line.startswith((b"TransformMatrix", b"space"))
    ]
    path.write_bytes(b"\n".join(kept))
    volume = read_volume(path)
    assert "left and right are unknown" in volume.warnings[0]
    assert np.allclose(np.diag(volume.grid.affine), (-1, -1, 1, 1))


@pytest.mark.parametrize(
    "name",
    ["../secret.raw", "{root}/secret.raw", "LIST", "LIST 2D", "%d.raw", "link.raw", "no.raw"],
)
@pytest.mark.parametrize("form", ["mhd", "mha", "nhdr", "nrrd"])
def test_voxels_elsewhere_are_refused(tmp_path: Path, form: str, name: str) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(16))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    (folder / "LIST").write_bytes(bytes(16))
    (folder / "LIST 2D").write_bytes(bytes(16))
    name = name.format(root=tmp_path)
    text = MHA.format(size="2 2 2", data=name)
    if form in ("nhdr", "nrrd"):
        text = NRRD.format(size="2 2 2", data=f"data file: {name}")
    (folder / f"scan.{form}").write_text(text)
    with pytest.raises(UserError, match=r"scan\.\w+: its voxels must be .* beside it"):
        read_volume(folder / f"scan.{form}")


@pytest.mark.parametrize("size", ["900 900 900", "99999999999 99999999999 2", "1" * 200])
@pytest.mark.parametrize("form", ["mha", "nrrd"])
def test_more_voxels_than_the_bytes_can_hold_are_refused_at_once(
    tmp_path: Path, form: str, size: str
) -> None:
    text = MHA.format(size=size, data="LOCAL")
    if form == "nrrd":
        text = NRRD.format(size=size, data="")
    path = tmp_path / f"scan.{form}"
    path.write_bytes(text.encode() + bytes(1000))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"scan\.\w+: (claims \d+ voxels|its header gives no size)"):
        read_volume(path)
    assert time.monotonic() - began < 2
