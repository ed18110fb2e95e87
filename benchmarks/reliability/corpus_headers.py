"""Files that are odd in their header: orientation, geometry, units, number types, dimensions."""

from itertools import permutations, product
from typing import Any

import numpy as np
from nibabel.quaternions import mat2quat

from benchmarks.reliability.corpus_files import LPS, Corpus, at
from benchmarks.reliability.nifti_bytes import (
    SHAPE,
    SPACING,
    Array,
    Scan,
    header,
    packed,
    placed,
    qform,
    qform_affine,
    sform,
    stored,
)

QUATERNION = (0.11, -0.23, 0.31)


def euler(*degrees: float) -> Array:
    """Rotation about x, then y, then z."""
    (a, b, c), (d, e, f) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    y = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return np.asarray(z @ y @ x)


def by_qform(
    name: str, quaternion: tuple[float, float, float] = QUATERNION, **options: float
) -> Scan:
    """A phantom placed by a qform alone."""
    qfac = options.get("qfac", 1)
    linear = qform_affine(quaternion, SPACING, -1 if qfac < 0 else 1)[:3, :3]
    scan = at(name, linear)
    fields = qform(quaternion, SPACING, scan.affine[:3, 3], qfac, int(options.get("code", 1)))
    return Scan(scan.affine, fields=fields)


def both(scan: Scan, code: int = 1) -> Scan:
    """The same with a qform that agrees with the sform."""
    linear = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    qfac = 1.0 if np.linalg.det(linear) > 0 else -1.0
    b, c, d = mat2quat(linear @ np.diag([1, 1, qfac]))[1:]
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0) / scan.unit_mm
    offset = scan.affine[:3, 3] / scan.unit_mm
    fields = qform((b, c, d), spacing, offset, qfac, code)
    return scan.with_fields(**fields)


def orientation(corpus: Corpus) -> None:
    """All 48 ways in which the voxel axes can run."""
    turns = product(permutations(range(3)), product([1, -1], repeat=3))
    for number, (axes, signs) in enumerate(turns):
        ends = zip(axes, signs, strict=True)
        codes = "".join("RAS"[axis] if sign > 0 else "LPI"[axis] for axis, sign in ends)
        linear = np.zeros((3, 3))
        for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
            linear[axis, column] = sign * SPACING[column]
        name = f"orientation_{codes}.nii.gz"
        scan = at(name, linear)
        corpus.good(name, both(scan) if number % 2 else scan, f"stored as {codes}")


def geometry(corpus: Corpus) -> None:
    """Affines that are unusual but say where the voxels lie."""
    good = corpus.good
    shear = np.array([[1, 0, 0], [0, 1, 0.27], [0, 0, 1.0]])
    odd = {
        "oblique_a": euler(12, -8, 20) @ LPS,
        "oblique_b": euler(40, 35, -30) @ LPS,
        "oblique_double_45": euler(45, 45, 0) @ np.diag(SPACING),
        "sheared": shear @ LPS,
        "sheared_strongly": np.array([[1, 0.5, 0], [0, 1, 0.4], [0.2, 0, 1.0]]) @ LPS,
        "off_orthonormal_1e-4": LPS + 1e-4 * np.array([[0, 1, -1], [1, 0, 1], [-1, 1, 0]]),
        "off_orthonormal_1e-2": LPS + 1e-2 * np.array([[0, 1, -1], [1, 0, 1], [-1, 1, 0]]),
    }
    for word, linear in odd.items():
        good(f"{word}.nii.gz", at(word, linear), f"sform only, {word.replace('_', ' ')}")
    good("oblique_both.nii.gz", both(at("ob", euler(12, -8, 20) @ LPS)), "oblique, both forms")
    good("qform_oblique.nii.gz", by_qform("q1"), "qform only, oblique")
    good("qform_half_turn.nii.gz", by_qform("q2", (0.0, 0.0, 1.0)), "qform only, a = 0")
    good("qform_left_handed.nii.gz", by_qform("q3", qfac=-1), "qform only, qfac -1")
    good("qform_qfac_zero.nii.gz", by_qform("q4", qfac=0), "qfac 0 counts as 1 (nifti1.h)")
    good("qform_code_2.nii.gz", by_qform("q5", code=2), "qform_code 2")
    good("qform_code_4.nii.gz", by_qform("q6", code=4), "qform_code 4")
    for code in (2, 3, 4):
        scan = at(f"s{code}").with_fields(sform_code=code)
        good(f"sform_code_{code}.nii.gz", scan, f"sform_code {code}")
    scan = at("pixdim").with_fields(pixdim=[1, 5, 5, 5, 1, 1, 1, 1])
    good("pixdim_disagrees.nii.gz", scan, "pixdim is not the sform's; the sform counts")
    scan = at("minus").with_fields(pixdim=[1, *(-x for x in SPACING), 1, 1, 1, 1])
    good("pixdim_negative.nii.gz", scan, "negative pixdim beside a sform; the sform counts")
    scan = at("ones").with_fields(pixdim=[1, 1, 1, 1, 1, 1, 1, 1])
    good("pixdim_ones.nii.gz", scan, "pixdim 1 beside a sform; the sform counts")
    scan = both(at("brk")).with_fields(quatern_b=np.nan)
    good(
        "qform_nan_beside_sform.nii.gz",
        scan,
        "a broken qform beside a sform",
        facts={"either": True},
    )
    fine = at("fine", np.diag([0.05, 0.05, 0.05]), radius_mm=0.3)
    good("spacing_0.05_mm.nii.gz", fine, "0.05 mm voxels", facts={"ball": False})
    thick = at("thick", np.diag([-0.7, -0.7, 7]), shape=(80, 80, 9))
    good("thick_slices.nii.gz", thick, "0.7 × 0.7 × 7 mm")
    tall = at("far")
    affine = placed(tall.affine, (9000.0, -8000.0, 7000.0), tall.middle)
    good("far_away.nii.gz", Scan(affine, fields=sform(affine)), "nine metres from the origin")


def forms(corpus: Corpus) -> None:
    """A sform and a qform that disagree, are missing or are broken."""
    scan = at("apart")
    shifted = both(scan).with_fields(qoffset_x=scan.affine[0, 3] + 40)
    turned = both(scan).with_fields(quatern_b=0.1, quatern_c=0.99, quatern_d=0.0)
    for name, odd in {"forms_40_mm_apart": shifted, "forms_turned": turned}.items():
        facts = {"expect": "accept-warn", "scan": odd}
        raw, hu = stored(odd)
        corpus.put(f"{name}.nii.gz", packed(raw), "the sform counts", hu=hu, **facts)
    mirrored = both(at("mirror")).with_fields(pixdim=[1, *SPACING, 1, 1, 1, 1])
    mirrored = mirrored.with_fields(srow_x=-mirrored.fields["srow_x"])
    corpus.bad("forms_mirrored.nii.gz", packed(stored(mirrored)[0]), "left or right?")
    unknown = {"no_codes": at("nc"), "no_codes_with_srow": at("nc2")}
    for name, odd in unknown.items():
        fields = {"sform_code": 0} | (
            {} if "srow" in name else {"srow_x": 0, "srow_y": 0, "srow_z": 0}
        )
        raw, hu = stored(odd.with_fields(**fields))
        corpus.put(
            *(f"{name}.nii.gz", packed(raw), "left and right unknown"),
            **{"expect": "accept-warn", "scan": odd, "hu": hu, "where": False},
        )
    broken = {
        "sform_nan": at("a").with_fields(srow_y=[np.nan, 1, 0, 0]),
        "sform_inf": at("b").with_fields(srow_z=[0, 0, np.inf, 0]),
        "sform_offset_nan": at("c").with_fields(srow_x=[-2, 0, 0, np.nan]),
        "sform_zeros": at("d").with_fields(srow_x=0, srow_y=0, srow_z=0),
        "sform_two_axes_alike": at("e").with_fields(srow_x=[2, 2, 0, 0], srow_y=[1, 1, 0, 0]),
        "sform_flat": at("f").with_fields(srow_z=0),
        "sform_zeros_beside_qform": both(at("g")).with_fields(srow_x=0, srow_y=0, srow_z=0),
        "qform_nan": by_qform("h").with_fields(quatern_c=np.nan),
        "qform_offset_nan": by_qform("i").with_fields(qoffset_z=np.nan),
        "qform_too_long": by_qform("j").with_fields(quatern_b=0.9, quatern_c=0.9),
        "qform_zero_spacing": by_qform("k").with_fields(pixdim=[1, 0, 2, 2, 1, 1, 1, 1]),
        "qform_nan_spacing": by_qform("l").with_fields(pixdim=[1, np.nan, 2, 2, 1, 1, 1, 1]),
        "qform_inf_spacing": by_qform("m").with_fields(pixdim=[1, 2, np.inf, 2, 1, 1, 1, 1]),
        "no_codes_zero_spacing": at("n").with_fields(sform_code=0, pixdim=[1, 0, 0, 0, 1, 1, 1, 1]),
    }
    for name, scan in broken.items():
        raw, hu = stored(scan)
        qform_left: dict[str, Any] = {"either": True, "scan": scan, "hu": hu}
        facts = qform_left if name == "sform_zeros_beside_qform" else {}
        corpus.bad(f"{name}.nii.gz", packed(raw), name.replace("_", " "), **facts)
    negative = by_qform("o").with_fields(pixdim=[1, -2, 2.2, 2.5, 1, 1, 1, 1])
    words = "nifti1.h: pixdim must be positive with a qform"
    corpus.bad("qform_negative_spacing.nii.gz", packed(stored(negative)[0]), words)


def units(corpus: Corpus) -> None:
    """Lengths in other units than millimetres."""
    names = {0: (1.0, "unknown"), 1: (1000.0, "metre"), 2: (1.0, "mm"), 3: (0.001, "micron")}
    for code, (size, word) in names.items():
        scan = at(word, unit_mm=size).with_fields(xyzt_units=code)
        corpus.good(f"units_{word}.nii.gz", scan, f"sform in {word}")
        scan = both(at(word + "q", unit_mm=size)).with_fields(xyzt_units=code, sform_code=0)
        corpus.good(f"units_{word}_qform.nii.gz", scan, f"qform in {word}")
    for code, word in {10: "mm_sec", 18: "mm_msec", 19: "micron_msec"}.items():
        scan = at(word, unit_mm=0.001 if code == 19 else 1.0).with_fields(xyzt_units=code)
        corpus.good(f"units_{word}.nii.gz", scan, "a unit of time beside that of length")
    for code in (4, 7):
        scan = at("u").with_fields(xyzt_units=code)
        raw, hu = stored(scan)
        facts: dict[str, Any] = {"either": True, "scan": scan, "hu": hu}
        corpus.bad(f"units_{code}.nii.gz", packed(raw), "no such unit in nifti1.h", **facts)


def number_types(corpus: Corpus) -> None:
    """Every number type in both byte orders, and those that hold no plain numbers."""
    small = {"u1": (6.0, -1000.0), "i1": (6.0, -300.0), "u2": (1.0, -1024.0), "u4": (1.0, -1024.0)}
    for kind in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        for order, word in (("<", "little"), (">", "big")):
            slope, inter = {**small, "u8": (1.0, -1024.0)}.get(kind, (1.0, 0.0))
            options = {"dtype": kind, "order": order, "slope": slope, "inter": inter}
            corpus.good(
                f"{kind}_{word}.nii.gz", at(kind + word), f"{kind}, {word}-endian", **options
            )
    scan = at("odd types")
    size = int(np.prod(SHAPE))
    kinds = {"rgb": (128, 24), "rgba": (2304, 32), "complex64": (32, 64), "complex128": (1792, 128)}
    for name, (code, bits) in (kinds | {"complex256": (2048, 256), "one_bit": (1, 1)}).items():
        fields = {**scan.fields, "dim": [3, *SHAPE, 1, 1, 1, 1], "datatype": code, "bitpix": bits}
        data = header(fields) + bytes(4) + bytes(size * bits // 8)
        corpus.bad(f"type_{name}.nii.gz", packed(data), f"{name} voxels", no_scan=True)
    corpus.good("type_float128.nii.gz", scan, "128-bit floats", dtype="f16", facts={"either": True})
    for name, fields in {
        "type_0": {"datatype": 0},
        "type_9999": {"datatype": 9999},
        "type_negative": {"datatype": -4},
        "bitpix_8_for_int16": {"bitpix": 8},
        "bitpix_negative": {"bitpix": -16},
    }.items():
        raw, hu = stored(scan.with_fields(**fields))
        readable: dict[str, Any] = {"either": True, "scan": scan, "hu": hu}
        facts = readable if "bitpix" in name else {}
        corpus.bad(f"{name}.nii.gz", packed(raw), name.replace("_", " "), **facts)


def slopes(corpus: Corpus) -> None:
    """scl_slope and scl_inter; nifti1.h: a slope of 0 means no scaling, the intercept included."""
    plain = {"zero": (0, 0), "zero_with_inter": (0, 1000), "nan": (np.nan, 0), "inf": (np.inf, 0)}
    for word, (slope, inter) in (
        plain | {"nan_both": (np.nan, np.nan), "minus_inf": (-np.inf, 7)}
    ).items():
        scan = at(word).with_fields(scl_slope=slope, scl_inter=inter)
        corpus.good(f"slope_{word}.nii.gz", scan, f"slope {slope}, intercept {inter}: no scaling")
    scan = at("inter nan").with_fields(scl_inter=np.nan)
    corpus.good("inter_nan.nii.gz", scan, "slope 1, intercept NaN", facts={"either": True})
    real = {
        "negative": ("i2", -1.0, 0.0),
        "half": ("i2", 0.5, -1000.0),
        "minus_2_5": ("i4", -2.5, 100.0),
        "0.001": ("i4", 0.001, 0.0),
        "of_floats": ("f4", 2.0, 1000.0),
        "inter_-1024": ("u2", 1.0, -1024.0),
    }
    for word, (kind, slope, inter) in real.items():
        options = {"dtype": kind, "slope": slope, "inter": inter}
        corpus.good(
            f"slope_{word}.nii.gz", at(word), f"slope {slope}, intercept {inter}", **options
        )


def dimensions(corpus: Corpus) -> None:
    """dim[]: trailing ones, several volumes, nonsense."""
    a, b, c = SHAPE
    for n in (4, 5, 6, 7):
        scan = at(f"{n}d").with_fields(dim=[n, a, b, c, 1, 1, 1, 1])
        corpus.good(f"{n}d_one_volume.nii.gz", scan, f"{n}D, trailing dimensions of size 1")
    scan = at("unused").with_fields(dim=[3, a, b, c, 7, -3, 0, 99])
    corpus.good("unused_dims_garbage.nii.gz", scan, "what lies beyond dim[0] does not count")
    several = {"4d_3": [4, a, b, c, 3, 1, 1, 1], "5d_3": [5, a, b, c, 1, 3, 1, 1]}
    several |= {"7d_2": [7, a, b, c, 1, 1, 1, 2], "6d_2x2": [6, a, b, c, 2, 1, 2, 1]}
    raw = stored(at("dims"))[0]
    for name, dim in several.items():
        count = int(np.prod(dim[4:]))
        data = stored(at("dims").with_fields(dim=dim))[0] + raw[352:] * (count - 1)
        corpus.bad(f"{name}_volumes.nii.gz", packed(data), "several volumes: which?", no_scan=True)
    flat = {"1d": [1, 9, 1, 1, 1, 1, 1, 1], "2d": [2, a, b, 1, 1, 1, 1, 1]}
    wrong = {
        "dim0_zero": [0, a, b, c, 1, 1, 1, 1],
        "dim0_8": [8, a, b, c, 1, 1, 1, 1],
        "dim0_negative": [-3, a, b, c, 1, 1, 1, 1],
        "size_zero": [3, 0, b, c, 1, 1, 1, 1],
        "size_negative": [3, a, -b, c, 1, 1, 1, 1],
        "two_negative": [3, -a, -b, c, 1, 1, 1, 1],
        "4d_zero_volumes": [4, a, b, c, 0, 1, 1, 1],
        "more_than_there_is": [3, a, b, c + 1, 1, 1, 1, 1],
        "huge_32767": [3, 32767, 32767, 32767, 1, 1, 1, 1],
        "huge_volumes": [7, a, b, c, 32767, 32767, 32767, 32767],
    }
    for name, dim in (flat | wrong).items():
        data = stored(at("dims").with_fields(dim=dim))[0]
        corpus.bad(f"{name}.nii.gz", packed(data), f"dim {dim}", no_scan=name in flat)
    for name, dim in {"overflow": [3, 2**32, 2**32, 4], "negative_64": [3, -(2**63), 1, 1]}.items():
        data = stored(at("dims").with_fields(dim=[*dim, 1, 1, 1, 1]), version=2)[0]
        corpus.bad(f"nifti2_{name}.nii.gz", packed(data), "64-bit sizes that overflow")
    less = at("less").with_fields(dim=[3, a, b, c - 1, 1, 1, 1, 1])
    raw, hu = stored(less)
    facts: dict[str, Any] = {"either": True, "scan": less, "hu": hu[..., :-1]}
    corpus.bad("less_than_there_is.nii.gz", packed(raw), "a slice left over", **facts)
    for name, shape in {"one_slice": (a, b, 1), "tiny": (4, 3, 2), "one_row": (40, 1, 1)}.items():
        corpus.good(
            f"{name}.nii.gz", at(name, shape=shape), f"{shape} voxels", facts={"ball": False}
        )


GROUPS = (orientation, geometry, forms, units, number_types, slopes, dimensions)
