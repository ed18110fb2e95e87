"""NIfTI files: sound ones are read as they are, others refused by name; written ones are whole."""

import gzip
import os
import resource
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image

from attunet3d.core import Array, DataError, Floats, WriteError
from attunet3d.core.errors import UserError
from attunet3d.imaging.byte_stream import READ_BYTES
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.nifti import read_nifti
from attunet3d.imaging.nifti_header import NiftiGeometry
from attunet3d.imaging.nifti_writer import write_nifti

LIMIT = 10**6
AFFINE = np.array([[-0.8, 0, 0.1, 90], [0, 0.8, 0, -60], [0, 0.05, 2.5, 10], [0, 0, 0, 1.0]])
RAMP = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3, order="F") - 30


def image(
    array: Array = RAMP,
    affine: Floats = AFFINE,
    kind: type[Any] = nib.Nifti1Image,
    units: str = "mm",
) -> Nifti1Image | Nifti2Image:
    made = kind(array, affine)
    made.header.set_xyzt_units(units)
    return made


def stored(tmp_path: Path, made: Nifti1Image | Nifti2Image, name: str = "a.nii.gz") -> Path:
    nib.save(made, tmp_path / name)
    return tmp_path / name


def read(path: Path) -> tuple[Array, Grid, NiftiGeometry, list[str]]:
    return read_nifti(path, max_voxels=LIMIT)


def edited(path: Path, offset: int, data: bytes) -> Path:
    """The uncompressed file with some bytes replaced."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


# --- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_voxels_and_affine_come_back(tmp_path: Path, kind: type[Any], name: str) -> None:
    array, grid, geometry, warnings = read(stored(tmp_path, image(kind=kind), name))
    assert array.dtype == np.int16
    assert array.flags.f_contiguous
    assert (array == RAMP).all()
    assert np.allclose(grid.affine, AFFINE, atol=1e-5)
    assert geometry.version == (1 if kind is nib.Nifti1Image else 2)
    assert warnings == []


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_number_type_in_either_byte_order(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.abs(RAMP).astype(dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    path = stored(tmp_path, nib.Nifti1Image(values, AFFINE, header))
    array, grid, _, _ = read(path)
    assert (array == np.abs(RAMP)).all()
    assert array.dtype == (np.float32 if dtype.startswith("f") else np.int16)
    assert np.allclose(grid.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(
    ("slope", "inter", "wanted"),
    [
        (1, -1024, RAMP.astype(float) - 1024),
        (2, 10, RAMP * 2.0 + 10),
        (0.5, 0.25, RAMP * 0.5 + 0.25),
        (-3, 7, RAMP * -3.0 + 7),
        (0, 99, RAMP),
        (np.nan, 99, RAMP),
        (1, np.inf, RAMP),
        (1000, 0, RAMP * 1000.0),
        (1e30, 0, RAMP * 1e30),
    ],
)
def test_slope_and_intercept(tmp_path: Path, slope: float, inter: float, wanted: Array) -> None:
    path = edited(stored(tmp_path, image()), 112, struct.pack("<ff", slope, inter))
    array = read(path)[0]
    assert np.allclose(array, wanted, rtol=1e-6)


def test_whole_results_that_fit_stay_int16_and_others_are_float32(tmp_path: Path) -> None:
    path = stored(tmp_path, image(np.array([0, 3071], np.uint16).reshape(2, 1, 1)))
    assert read(path)[0].dtype == np.int16
    shifted = edited(path, 112, struct.pack("<ff", 1, -1024))
    assert read(shifted)[0].ravel().tolist() == [-1024, 2047]
    assert read(edited(path, 112, struct.pack("<ff", 20, 0)))[0].dtype == np.float32
    path = stored(tmp_path, image(np.array([0, 65535], np.uint16).reshape(2, 1, 1)))
    assert read(path)[0].ravel().tolist() == [0, 65535]
    wraps = edited(path, 112, struct.pack("<ff", 1, -32768))
    assert read(wraps)[0].ravel().tolist() == [-32768, 32767]


@pytest.mark.parametrize(
    ("units", "factor"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)]
)
def test_lengths_are_millimetres(tmp_path: Path, units: str, factor: float) -> None:
    grid = read(stored(tmp_path, image(units=units)))[1]
    assert np.allclose(grid.affine[:3], AFFINE[:3] * factor, rtol=1e-5)


def test_trailing_dimensions_of_one_are_dropped(tmp_path: Path) -> None:
    assert read(stored(tmp_path, image(RAMP[..., None, None])))[0].shape == (5, 4, 3)


# --- sform, qform, neither -------------------------------------------------------------------


def test_the_sform_counts_before_the_qform(tmp_path: Path) -> None:
    made = image()
    moved = AFFINE.copy()
    moved[:3, 3] += 40
    made.header.set_sform(AFFINE, 2)
    made.header.set_qform(moved, 1)
    _, grid, _, warnings = read(stored(tmp_path, made))
    assert np.allclose(grid.affine, AFFINE, atol=1e-5)
    assert len(warnings) == 1
    assert "the sform counts" in warnings[0]


def test_the_qform_counts_without_a_sform(tmp_path: Path) -> None:
    made = image(affine=np.diag([-2, 3, 4, 1.0]))
    made.header.set_sform(None, 0)
    made.header.set_qform(np.diag([-2, 3, 4, 1.0]), 1)
    nib.save(made, tmp_path / "a.nii.gz")
    assert np.allclose(read(tmp_path / "a.nii.gz")[1].affine, np.diag([-2, 3, 4, 1.0]), atol=1e-5)


@pytest.mark.parametrize("qfac", [0.0, 1.0, -1.0])
def test_a_qfac_of_zero_counts_as_one(tmp_path: Path, qfac: float) -> None:
    made = image(affine=np.diag([2, 2, -2 if qfac < 0 else 2, 1.0]))
    made.set_qform(made.affine, 1)
    made.set_sform(None, 0)
    path = edited(stored(tmp_path, made), 76, struct.pack("<f", qfac))
    assert read(path)[1].affine[2, 2] == (-2 if qfac < 0 else 2)


def test_without_either_spacing_is_kept_and_a_warning_given(tmp_path: Path) -> None:
    path = edited(stored(tmp_path, image()), 252, struct.pack("<hh", 0, 0))
    _, grid, _, warnings = read(path)
    assert np.allclose(grid.spacing_mm, voxel_sizes(AFFINE), atol=1e-5)
    assert "left and right" in warnings[0]


def test_forms_that_contradict_each_other_on_left_and_right_are_refused(tmp_path: Path) -> None:
    made = image(affine=np.diag([2, 2, 2, 1.0]))
    made.header.set_sform(np.diag([2, 2, 2, 1.0]), 1)
    made.header.set_qform(np.diag([-2, 2, 2, 1.0]), 1)
    with pytest.raises(DataError, match="left and right"):
        read(stored(tmp_path, made))


# --- what is refused -------------------------------------------------------------------------

HEADERS = {  # offset, bytes, words
    "dim[0] 9": (40, struct.pack("<h", 9), r"dim\[0\] = 9"),
    "negative": (42, struct.pack("<h", -5), "1 or more"),
    "zero": (42, struct.pack("<h", 0), "1 or more"),
    "2d": (40, struct.pack("<hhhh", 2, 5, 4, 1), "2D image"),
    "4d": (40, struct.pack("<hhhhh", 4, 5, 4, 1, 3), "3 volumes.*: must be one;"),
    "huge": (42, struct.pack("<hhh", 30000, 30000, 30000), "voxels: at most"),
    "more than it holds": (
        42,
        struct.pack("<hhh", 99, 99, 99),
        "more than it can hold|is truncated",
    ),
    "rgb": (70, struct.pack("<hh", 128, 24), "RGB"),
    "complex": (70, struct.pack("<hh", 32, 64), "complex"),
    "double complex": (70, struct.pack("<hh", 1792, 128), "complex"),
    "unknown type": (70, struct.pack("<hh", 9999, 16), "unknown voxels"),
    "bitpix": (72, struct.pack("<h", 8), "bitpix"),
    "offset far": (108, struct.pack("<f", 1e9), "vox_offset"),
    "offset in header": (108, struct.pack("<f", 100), "vox_offset"),
    "offset nan": (108, struct.pack("<f", np.nan), "vox_offset"),
    "magic": (344, b"abc\0", "magic"),
    "two files": (344, b"ni1\0", "single file"),
    "units": (123, b"\7", "xyzt_units"),
    "nan affine": (280, struct.pack("<f", np.nan), "finite"),
    "singular": (280, struct.pack("<12f", *([1, 0, 0, 0] * 3)), "singular"),
    "long quaternion": (252, struct.pack("<hh3f", 1, 0, 0.9, 0.9, 0.9), "invalid qform"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_break_a_rule_are_refused_by_name(tmp_path: Path, name: str) -> None:
    offset, data, words = HEADERS[name]
    path = edited(stored(tmp_path, image()), offset, data)
    with pytest.raises(UserError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "cut": data[: len(data) // 2],
        "no trailer": data[:-8],
        "wrong checksum": data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
        "wrong length": data[:-4] + bytes([data[-4] ^ 1]) + data[-3:],
        "one bit": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :],
        "empty": b"",
        "text": b"<html>not found</html>" * 40,
        "gzip of noise": gzip.compress(bytes(range(256)) * 20),
        "short": gzip.compress(bytes(100)),
    }


@pytest.mark.parametrize("kind", damaged(bytes(50)))
def test_damaged_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    path = stored(tmp_path, image(noise))
    path.write_bytes(damaged(path.read_bytes())[kind])
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_members_padding_and_what_follows(tmp_path: Path) -> None:
    path = stored(tmp_path, image(), "a.nii")
    raw = path.read_bytes()
    for cut in (100, 352, 400):
        path.write_bytes(gzip.compress(raw[:cut]) + gzip.compress(raw[cut:]) + bytes(999))
        array, _, _, warnings = read(path)
        assert (array == RAMP).all()
        assert warnings == []
    path.write_bytes(gzip.compress(raw) + b"garbage")
    assert "after the gzip stream" in read(path)[3][0]
    path.write_bytes(raw + b"more")
    assert "4 bytes after the voxels" in read(path)[3][0]
    path.write_bytes(raw[:-1])
    with pytest.raises(DataError, match="more than it can hold"):
        read(path)


@pytest.mark.parametrize("short", [0, 1, 2, 5])
def test_a_member_may_begin_anywhere_against_the_pieces_read(tmp_path: Path, short: int) -> None:
    path = stored(tmp_path, image(), "a.nii")
    raw = path.read_bytes()
    first, second = gzip.compress(raw[:400]), gzip.compress(raw[400:])
    name = bytes([65]) * (READ_BYTES - short - len(first) - 1) + bytes(1)  # RFC 1952, FNAME
    first = first[:3] + bytes([8]) + first[4:10] + name + first[10:]
    assert len(first) == READ_BYTES - short
    path.write_bytes(first + second)
    array, _, _, warnings = read(path)
    assert (array == RAMP).all()
    assert warnings == []


def test_a_hundred_thousand_members(tmp_path: Path) -> None:
    path = stored(tmp_path, image(), "a.nii")
    raw = path.read_bytes()
    path.write_bytes(gzip.compress(raw) + gzip.compress(b"") * 100_000)
    assert (read(path)[0] == RAMP).all()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="is truncated"):
        read(path)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(("order", "kind"), [("<", nib.Nifti1Pair), (">", nib.Nifti2Pair)])
def test_header_and_voxels_in_two_files(
    tmp_path: Path, ending: str, order: str, kind: type[Any]
) -> None:
    header = kind.header_class(endianness=order)
    made = kind(RAMP, AFFINE, header)
    made.header.set_xyzt_units("mm")
    made.to_filename(tmp_path / f"a.img{ending}")
    array, grid, geometry, warnings = read(tmp_path / f"a.hdr{ending}")
    assert (array == RAMP).all()
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-6)
    assert geometry.version == (1 if kind is nib.Nifti1Pair else 2)
    assert warnings == []
    write_nifti(tmp_path / "out.nii.gz", array, geometry, grid)
    assert (np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj) == RAMP).all()


def test_pairs_that_are_none_are_refused_by_the_headers_name(tmp_path: Path) -> None:
    nib.Nifti1Pair(RAMP, AFFINE).to_filename(tmp_path / "a.img")
    header, body = (tmp_path / "a.hdr").read_bytes(), (tmp_path / "a.img").read_bytes()
    for name, changed, rest, words in (
        ("short", header, body[:-1], "more than it can hold"),
        ("empty", header, b"", "is empty"),
        ("analyze", header[:344] + bytes(4), body, "Analyze is not read"),
        ("single", header[:344] + b"n+1\0", body, "of a pair"),
        ("headless", header[:200], body, "within the header"),
        ("long", header + bytes(2 << 20), body, "far more bytes"),
        ("alone", header, None, r"alone\.img: No such file"),
    ):
        (tmp_path / f"{name}.hdr").write_bytes(changed)
        if rest is not None:
            (tmp_path / f"{name}.img").write_bytes(rest)
        with pytest.raises(DataError, match=words) as caught:
            read(tmp_path / f"{name}.hdr")
        assert f"{name}.hdr: " in str(caught.value)


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    raw = gzip.decompress(stored(tmp_path, image()).read_bytes())
    bomb = tmp_path / "bomb.nii.gz"
    zeros = gzip.compress(bytes(1 << 24))
    bomb.write_bytes(gzip.compress(raw) + zeros * 64)  # a gigabyte behind 120 bytes of voxels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="far more bytes"):
        read(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_no_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.nii"):
        read(tmp_path / "none.nii")
    with pytest.raises(DataError):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.nii")
    outcome = []

    def attempt() -> None:
        try:
            read(tmp_path / "pipe.nii")
        except DataError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert "not a regular file" in outcome[0]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_bytes_change_only_a_users_error_comes_out(
    tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(gzip.decompress(stored(tmp_path, image()).read_bytes()))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    packed = bytearray(gzip.compress(bytes(raw), 1, mtime=0))
    if data.draw(st.booleans()):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "mutant.nii.gz").write_bytes(packed)
    try:
        array, grid, _, _ = read(tmp_path / "mutant.nii.gz")
    except UserError as error:
        named = "mutant.nii.gz" in str(error)
    else:
        named = array.shape == grid.shape
    assert named


# --- what is written -------------------------------------------------------------------------

FIELDS = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_source_grid_in_the_same_grid_out(tmp_path: Path, data: st.DataObject) -> None:
    number = st.floats(-3, 3, allow_nan=False, width=32)
    affine = np.eye(4)
    shear = [[data.draw(number) * 0.3 for _ in "xyz"] for _ in "xyz"]
    affine[:3, :3] = np.diag([1.5, 2, 3]) + shear
    affine[:3, 3] = [data.draw(st.floats(-500, 500, width=32)) for _ in "xyz"]
    order = list(data.draw(st.permutations(range(3))))
    affine[:, :3] = affine[:, :3][:, order]
    affine[:, 0] *= data.draw(st.sampled_from([-1, 1]))
    shape = tuple(data.draw(st.integers(1, 7)) for _ in "xyz")
    trailing = (1,) * data.draw(st.integers(0, 2))
    kind = data.draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    units = data.draw(st.sampled_from(["mm", "micron", "meter", "unknown"]))
    dtype = data.draw(st.sampled_from(["i2", "u1", "f4", "i4"]))
    source = image(np.ones(shape + trailing, dtype), affine, kind, units)
    path = stored(tmp_path, source, "source.nii.gz")
    array, grid, geometry, _ = read(path)
    label = (array > 0).astype(np.uint8)
    write_nifti(tmp_path / "label.nii.gz", label, geometry, grid)
    ours, theirs = nib.load(tmp_path / "label.nii.gz"), nib.load(path)
    assert ours.shape == theirs.shape
    assert ours.affine.tobytes() == theirs.affine.tobytes()
    assert type(ours) is type(theirs)
    for name in FIELDS:
        assert ours.header[name].tobytes() == theirs.header[name].tobytes()
    assert (np.asarray(ours.dataobj) == 1).all()
    assert read(tmp_path / "label.nii.gz")[1].matches(grid, 0.0)


def test_nothing_of_a_patient_is_copied(tmp_path: Path) -> None:
    made = image()
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        made.header[name] = b"DOE^JOHN"
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 1950-01-01 DOE"))
    array, grid, geometry, warnings = read(stored(tmp_path, made))
    write_nifti(tmp_path / "label.nii", (array > 0).astype(np.uint8), geometry, grid)
    assert b"DOE" not in (tmp_path / "label.nii").read_bytes()
    assert b"DOE" in gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert warnings == []


def test_without_a_source_header_the_grid_makes_one(tmp_path: Path) -> None:
    grid = Grid((5, 4, 3), AFFINE)
    write_nifti(tmp_path / "a.nii.gz", RAMP, None, grid)
    made = nib.load(tmp_path / "a.nii.gz")
    assert np.allclose(made.affine, AFFINE, atol=1e-5)
    assert made.header.get_xyzt_units()[0] == "mm"
    assert (np.asarray(made.dataobj) == RAMP).all()


def test_many_maps_with_a_slope(tmp_path: Path) -> None:
    maps = np.arange(5 * 4 * 3 * 2, dtype=np.uint16).reshape(5, 4, 3, 2)
    _, grid, geometry, _ = read(stored(tmp_path, image()))
    write_nifti(tmp_path / "m.nii.gz", maps, geometry, grid, slope=0.5)
    made = nib.load(tmp_path / "m.nii.gz")
    assert np.allclose(made.get_fdata(), maps * 0.5)
    assert np.allclose(made.affine, AFFINE, atol=1e-5)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 40)).astype(np.uint8)
    write_nifti(tmp_path / "a.nii.gz", RAMP, None, Grid((5, 4, 3), AFFINE))
    np.save(tmp_path / "noise.npy", noise)
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from attunet3d.core.whole_file import WriteError\n"
        "from attunet3d.imaging.geometry import Grid\n"
        "from attunet3d.imaging.nifti_writer import write_nifti\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n"
        "    write_nifti(folder / 'a.nii.gz', np.load(folder / 'noise.npy'), None,\n"
        "                Grid((40, 40, 40), np.eye(4)))\n"
        "except WriteError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert "a.nii.gz: cannot be written" in done.stdout
    assert (read(tmp_path / "a.nii.gz")[0] == RAMP).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "noise.npy"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="none"):
        write_nifti(tmp_path / "none" / "a.nii", RAMP, None, Grid((5, 4, 3), AFFINE))
