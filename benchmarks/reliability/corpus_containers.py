"""Files that are odd around the header: packing, damage, values, names, and what must not leak."""

import bz2
import lzma
import os
import zlib
from typing import Any

import numpy as np

from benchmarks.reliability.corpus_files import Corpus, at
from benchmarks.reliability.nifti_bytes import (
    AIR,
    flipped,
    packed,
    packed_with_names,
    stored,
)

PATIENT = ("ROE^JANE", "PID-90210", "19610412")
EXTENSION = (32).to_bytes(4, "little") + (6).to_bytes(4, "little")  # size, code "comment"


def plain(raw: bytes) -> bytes:
    """Not packed at all."""
    return raw


def containers(corpus: Corpus) -> None:
    """Sound scans in unusual wrappings."""
    good = corpus.good
    for version, word in ((1, "nifti1"), (2, "nifti2")):
        for order, end in (("<", "little"), (">", "big")):
            options: dict[str, Any] = {"version": version, "order": order}
            name = f"{word}_{end}"
            good(f"{name}.nii", at(name), f"{word}, {end}-endian, not packed", how=plain, **options)
            if version == 2:
                good(f"{name}_packed.nii.gz", at(name), f"{word}, {end}-endian", **options)
    either = {"either": True}
    good("packed_called.nii", at("pc"), "gzip called .nii", facts=either)
    good("not_packed_called.nii.gz", at("np"), "no gzip, called .nii.gz", how=plain, facts=either)
    ways = {
        "level_0": lambda raw: packed(raw, 0),
        "level_9": lambda raw: packed(raw, 9),
        "members": lambda raw: packed(raw[:100]) + packed(raw[100:5000]) + packed(raw[5000:]),
        "member_of_nothing": lambda raw: packed(raw) + packed(b""),
        "padding_of_zeros": lambda raw: packed(raw) + bytes(700),
        "all_optional_parts": lambda raw: packed_with_names(raw, b"a.nii", b"hello"),
    }
    for name, how in ways.items():
        good(f"gzip_{name}.nii.gz", at(name), f"gzip: {name.replace('_', ' ')}", how=how)
    extension = bytes([1, 0, 0, 0]) + EXTENSION + b"x" * 24
    scan = at("extension").with_fields(vox_offset=384)
    good("extension.nii.gz", scan, "a header extension", between=extension)
    nonsense = bytes([1, 0, 0, 0]) + b"\xff" * 8 + b"x" * 24
    words = "an extension that claims 4 GB; vox_offset tells where the voxels are"
    good("extension_nonsense.nii.gz", scan, words, between=nonsense, facts=either)
    odd = at("odd offset").with_fields(vox_offset=365)
    good("vox_offset_odd.nii.gz", odd, "vox_offset no multiple of 16", between=bytes(17))
    pairs(corpus)


def pairs(corpus: Corpus) -> None:
    """Header and voxels in two files."""
    for name, end, how in (("pair", "", plain), ("pair_packed", ".gz", packed)):
        scan = at(name).with_fields(magic=b"ni1\0", vox_offset=0)
        raw, hu = stored(scan)
        corpus.path(f"{name}.img{end}").write_bytes(how(raw[352:]))
        words = "NIfTI-1 as .hdr and .img"
        facts = {"expect": "accept", "scan": scan, "hu": hu}
        corpus.put(f"{name}.hdr{end}", how(raw[:348]), words, **facts)
    raw, _ = stored(at("alone").with_fields(magic=b"ni1\0", vox_offset=0))
    corpus.bad("pair_without_image.hdr", raw[:348], "a .hdr without its .img")
    corpus.path("pair_short.img").write_bytes(raw[352:20000])
    corpus.bad("pair_short.hdr", raw[:348], "the .img breaks off")
    analyze = at("analyze").with_fields(magic=b"", sform_code=0, vox_offset=0)
    raw, hu = stored(analyze)
    corpus.path("analyze.img").write_bytes(raw[352:])
    facts = {"expect": "accept-warn", "scan": analyze, "hu": hu, "where": False, "either": True}
    corpus.put("analyze.hdr", raw[:348], "Analyze 7.5: left and right unknown", **facts)


def headers_that_lie(corpus: Corpus) -> None:
    """Fields that say where the voxels begin, or what the file is."""
    scan = at("lies")
    wrong = {
        "vox_offset_100": {"vox_offset": 100},
        "vox_offset_nan": {"vox_offset": np.nan},
        "vox_offset_inf": {"vox_offset": np.inf},
        "vox_offset_negative": {"vox_offset": -352},
        "vox_offset_at_the_end": {"vox_offset": 352 + 2 * 28 * 32 * 24},
        "vox_offset_far": {"vox_offset": 1e9},
        "magic_wrong": {"magic": b"abc\0"},
        "magic_of_a_pair": {"magic": b"ni1\0"},
        "magic_none": {"magic": b""},
        "sizeof_hdr_0": {"sizeof_hdr": 0},
        "sizeof_hdr_349": {"sizeof_hdr": 349},
        "sizeof_hdr_540": {"sizeof_hdr": 540},
    }
    for name, fields in wrong.items():
        raw = stored(scan.with_fields(**fields))[0]
        corpus.bad(f"{name}.nii.gz", packed(raw), name.replace("_", " "))
    for name, offset in {"vox_offset_0": 0, "vox_offset_352.5": 352.5}.items():
        facts = {"either": True, "scan": scan}
        raw, hu = stored(scan.with_fields(vox_offset=offset))
        corpus.bad(f"{name}.nii.gz", packed(raw), "nifti1.h: at least 352", hu=hu, **facts)


def damage(corpus: Corpus) -> None:
    """Copies that broke off, and bits that changed."""
    rng = np.random.default_rng(3)
    scan = at("damage")
    noisy = scan.voxels() + rng.integers(-20, 20, scan.shape)
    raw = stored(scan, voxels=noisy)[0]
    data = packed(raw)
    for share in (0.002, 0.02, 0.25, 0.6, 0.95):
        piece = data[: int(share * len(data))]
        corpus.bad(f"cut_at_{share}.nii.gz", piece, f"cut at {share:.1%} of its length")
        piece = raw[: int(share * len(raw))]
        corpus.bad(f"plain_cut_at_{share}.nii", piece, f"not packed, cut at {share:.1%}")
    for count in (1, 4, 8, 9):
        corpus.bad(
            f"cut_{count}_short.nii.gz", data[:-count], f"the last {count} bytes are missing"
        )
    corpus.bad("plain_cut_1_short.nii", raw[:-1], "not packed, one byte short")
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        corpus.bad(
            f"bit_at_{share}.nii.gz", flipped(data, share), f"one bit changed at {share:.0%}"
        )
    middle = len(data) // 2
    holed = data[:middle] + bytes(2048) + data[middle + 2048 :]
    corpus.bad("hole.nii.gz", holed, "2 kB of zeros in the middle")
    corpus.bad(
        "crc_wrong.nii.gz", data[:-8] + flipped(data[-8:-4], 0) + data[-4:], "checksum wrong"
    )
    corpus.bad("length_wrong.nii.gz", data[:-4] + flipped(data[-4:], 0), "gzip's length wrong")
    first, second = packed(raw[:9000]), packed(raw[9000:])
    corpus.bad("second_member_cut.nii.gz", first + second[:-20], "the second member breaks off")
    wrong = second[:-8] + flipped(second[-8:-4], 0) + second[-4:]
    corpus.bad("second_member_crc.nii.gz", first + wrong, "the second member's checksum wrong")
    wrong = first[:-8] + flipped(first[-8:-4], 0) + first[-4:]
    corpus.bad("first_member_crc.nii.gz", wrong + second, "the first member's checksum wrong")
    more: dict[str, Any] = {"expect": "accept-warn", "either": True, "scan": scan, "hu": noisy}
    corpus.put("garbage_behind.nii.gz", data + b"garbage" * 9, "bytes after the stream", **more)
    corpus.put("plain_more_behind.nii", raw + b"garbage", "bytes after the voxels", **more)
    half = packed(raw) + packed(raw)[:200]
    corpus.bad("half_a_member_behind.nii.gz", half, "half a member behind", **more)


def no_nifti(corpus: Corpus) -> None:
    """Other files under a scan's name."""
    rng = np.random.default_rng(4)
    noise = rng.bytes(5000)
    raw = stored(at("no"))[0]
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n\n" + bytes(128)
    others = {
        "empty.nii.gz": b"",
        "empty.nii": b"",
        "one_byte.nii.gz": b"\x1f",
        "gzip_magic_alone.nii.gz": b"\x1f\x8b",
        "gzip_header_alone.nii.gz": packed(b"")[:10],
        "gzip_of_nothing.nii.gz": packed(b""),
        "gzip_of_gzip.nii.gz": packed(packed(raw)),
        "gzip_of_noise.nii.gz": packed(noise),
        "noise.nii.gz": noise,
        "noise.nii": noise,
        "text.nii.gz": b"not a scan\n" * 60,
        "page.nii.gz": b"<!DOCTYPE html><title>404</title>",
        "zlib.nii.gz": zlib.compress(raw),
        "bzip2.nii.gz": bz2.compress(raw),
        "xz.nii.gz": lzma.compress(raw),
        "zip.nii.gz": b"PK\x03\x04" + bytes(400),
        "png.nii.gz": b"\x89PNG\r\n\x1a\n" + bytes(400),
        "dicom.nii.gz": bytes(128) + b"DICM" + bytes(400),
        "nrrd.nii": nrrd,
        "header_alone.nii.gz": packed(raw[:348]),
        "zeros.nii": bytes(4096),
        "lfs_pointer.nii.gz": b"version https://git-lfs.github.com/spec/v1\nsize 1\n",
    }
    for name, data in others.items():
        corpus.bad(f"is_{name}", data, f"no scan: {name.split('.')[0].replace('_', ' ')}")
    data = packed(raw)
    corpus.bad("is_reversed.nii.gz", data[::-1], "a stream back to front")


def values(corpus: Corpus) -> None:
    """Voxels that are no Hounsfield units."""
    scan = at("values")
    hu = scan.voxels()

    def warned(name: str, voxels: Any, why: str, **options: Any) -> None:
        how = {"dtype": "f4", "voxels": voxels, **options}
        raw, truth = stored(scan, how.pop("dtype"), **how)
        ball = name in ("nan_around", "inf_around", "minus_inf_around", "nan_one", "huge_corner")
        facts: dict[str, Any] = {"scan": scan, "hu": truth, "ball": ball}
        corpus.put(f"{name}.nii.gz", packed(raw), why, expect="accept-warn", **facts)

    air = hu == AIR
    for name, value in {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf}.items():
        warned(f"{name}_around", np.where(air, value, hu), f"{value} for air: counts as air")
    one = hu.copy()
    one[0, 0, 0] = np.nan
    warned("nan_one", one, "one NaN", dtype="f8")
    one = hu.copy()
    one[0, 0, 0] = 1e300
    warned("huge_corner", one, "one voxel beyond float32", dtype="f8")
    warned("constant", np.full_like(hu, -1000), "all air", dtype="i2")
    warned("from_0_to_1", (hu + 1000) / 1300, "scaled to 0–1")
    warned("from_0_to_255", (hu + 1000) / 1300 * 255, "scaled to 0–255", dtype="u1")
    warned("plus_1024", hu + 1024, "raw values, 1024 above HU", dtype="u2")
    warned("minus_32768", np.where(air, -32768, hu), "padding far below air", dtype="i2")
    for name, value in {"nan": np.nan, "inf": np.inf}.items():
        raw = stored(scan, "f4", voxels=np.full_like(hu, value))[0]
        corpus.bad(f"all_{name}.nii.gz", packed(raw), f"nothing but {value}", no_scan=True)


def names(corpus: Corpus) -> None:
    """Names that trip shells, terminals and parsers, and things that are no files."""
    either = {"either": True}
    tame = ["with space", "ünïcode 名前", "😀", "-dash", "--out", "a.b.c", "100%s", "$(id)"]
    tame += ["[1]", "שלום", "UPPER", "#1", "a&b;c", "~", "{x}"]
    for name in tame:
        corpus.good(f"{name}.nii.gz", at(name), "an unusual name")
    corpus.good("LOUD.NII.GZ", at("loud"), "upper case ending")
    odd = [
        "new\nline",
        "tab\there",
        "colon:",
        "back\\slash",
        "esc\x1b[31m",
        "n" * 240,
        "*",
        "q'u\"o",
    ]
    for name in odd:  # no file name on every system
        corpus.good(f"{name}.nii.gz", at(name[:9]), "a name that may be refused", facts=either)
    for name, linked in {
        "link": "with space.nii.gz",
        "dangling": "nowhere",
        "loop": "loop.nii.gz",
    }.items():
        corpus.path(f"{name}.nii.gz").symlink_to(linked)
    whole = next(entry for entry in corpus.entries if entry.file.endswith("with space.nii.gz"))
    corpus.note(
        "link.nii.gz", "a link to a scan", expect="accept", ball_centre_mm=whole.ball_centre_mm
    )
    corpus.note("dangling.nii.gz", "a link to nowhere", expect="refuse")
    corpus.note("loop.nii.gz", "a link to itself", expect="refuse")
    corpus.path("folder.nii").mkdir(exist_ok=True)
    corpus.note("folder.nii", "an empty folder called .nii", expect="refuse")
    os.mkfifo(corpus.path("pipe.nii.gz"))
    corpus.note("pipe.nii.gz", "a named pipe that nobody writes to", expect="refuse")


def patients(corpus: Corpus) -> None:
    """Personal data wherever NIfTI and gzip have room for it."""
    name, number, birth = (text.encode() for text in PATIENT)
    text = (name + b" " + number + b" " + birth)[:80]
    fields = {"descrip": text, "aux_file": name, "db_name": number, "intent_name": birth}
    facts = {"must_not_leak": PATIENT}
    extension = bytes([1, 0, 0, 0]) + EXTENSION + (name + number).ljust(24, b"\0")[:24]
    scan = at("p1").with_fields(**fields, vox_offset=384)
    corpus.good("patient_1.nii.gz", scan, "free text", facts=facts, between=extension)
    del fields["db_name"]  # NIfTI-2 has none
    scan = at("p2").with_fields(**fields)
    corpus.good("patient_2.nii.gz", scan, "free text, NIfTI-2", facts=facts, version=2)

    def wrapped(raw: bytes) -> bytes:
        return packed_with_names(raw, name + b".nii", number + birth)

    corpus.good("patient_3.nii.gz", at("p3"), "gzip's name and comment", facts=facts, how=wrapped)
    raw = stored(at("p4").with_fields(**fields))[0]
    corpus.bad("patient_cut.nii.gz", packed(raw)[:-30], "refused, with a patient's name", **facts)
    raw = stored(at("p5").with_fields(**fields, dim=[3, -1, 2, 2, 1, 1, 1, 1]))[0]
    corpus.bad("patient_dims.nii.gz", packed(raw), "refused by its header", **facts)
    corpus.bad("patient_text.nii.gz", name + number + b"\n", "a text with a name", **facts)


GROUPS = (containers, headers_that_lie, damage, no_nifti, values, names, patients)
