"""Changes of sound files that keep most of their structure, so that readers get far into them.

All draw from a `random.Random` given; the same seed gives the same bytes.
"""

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from typing import Any

WHOLE = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 348, 352, 540, 544, 1023, 4096, 32767, 32768, 65535]
WHOLE += [65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64]
WHOLE += [-value for value in WHOLE]
REAL = [0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e-6, 1e6, 1e-38, 1e-45, 1e-310, 3.4e38, 1e39, 1.8e308]
REAL += [float("nan"), float("inf"), float("-inf"), 352.0, 352.5, 2.0**24, -(2.0**31)]
WORDS = ["", " ", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "CON", "nul.nii", "~"]
WORDS += ["a\0b", "a\nb", "\ud800", "é", "e\u0301", "\u202e", "\x1b[2J", "x" * 300, "x" * 70_000]
WORDS += ["$HOME", "${x}", "$__import__('os')", "NaN", "1e999", "0x" + "f" * 5000, "1:2:3", "null"]
WORDS += ["!!python/object/apply:os.system ['true']", "*a", "&a", "<<", "- - -", "{", "[", "'", '"']
VALUES: list[Any] = [None, True, False, [], {}, [[]], {"": {}}, *WHOLE, *REAL, *WORDS]
YAML = [
    "*a",
    "&a x",
    "!!int ''",
    "!!float ''",
    "!!bool x",
    "!!timestamp x",
    "!!binary é",
    "!!set x",
]
YAML += ["<<: {}", "<<: *a", "2020-99-99", "0x" + "f" * 900, "1:" * 90 + "1.0", "? ", "- " * 30]
YAML += [
    "[" * 300,
    "{a: " * 300,
    ".nan",
    ".inf",
    "~",
    "|",
    ">",
    "%YAML 9.9",
    "---",
    "...",
    "\t",
    "@",
]


def mutated(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to a few changes of bytes: flips, values, cuts, copies, pieces of another file."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        data = rng.choice(_BYTES)(data or b"\0", rng, other)
    return data


def _flip(data: bytes, rng: random.Random, _: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _number(data: bytes, rng: random.Random, _: bytes) -> bytes:
    place = rng.randrange(len(data))
    value = packed(rng.choice("bhiqfd"), rng.choice("<>"), rng)
    return data[:place] + value + data[place + len(value) :]


def _cut(data: bytes, rng: random.Random, _: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _lose(data: bytes, rng: random.Random, _: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.choice((1, 2, 4, 16, 256)) :]


def _repeat(data: bytes, rng: random.Random, _: bytes) -> bytes:
    place = rng.randrange(len(data))
    piece = data[place : place + rng.choice((1, 4, 64, 1024))]
    return data[:place] + piece * rng.choice((2, 3, 50)) + data[place:]


def _splice(data: bytes, rng: random.Random, other: bytes) -> bytes:
    other = other or data[::-1]
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _noise(data: bytes, rng: random.Random, _: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.choice((1, 4, 32))) + data[place:]


_BYTES = (_flip, _flip, _number, _number, _cut, _lose, _repeat, _splice, _noise)


def packed(code: str, endian: str, rng: random.Random) -> bytes:
    """A number that readers stumble over, as the format `code` of `struct` has it."""
    if code in "fd":
        value = rng.choice(REAL)
        try:
            return struct.pack(endian + code, value)
        except OverflowError:
            return struct.pack(endian + code, float("inf"))
    bits = 8 * struct.calcsize(code)
    whole: int = rng.choice(WHOLE) % 2**bits
    return whole.to_bytes(bits // 8, "little" if endian == "<" else "big")


def gzipped(data: bytes, rng: random.Random) -> bytes:
    """A gzip stream of the data in one of many shapes, sound for the most part."""
    kind = rng.randrange(12)
    whole = gzip.compress(data, rng.choice((0, 1, 6)), mtime=0)
    cut = rng.randrange(len(data) + 1)
    if kind == 0:  # members, one of them empty
        parts = (data[:cut], b"", data[cut:])
        return b"".join(gzip.compress(part, 1, mtime=0) for part in parts)
    if kind == 1:  # all optional fields of the header
        head = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x04\0abcd" + b"name\0" + b"comment\0"
        return head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + whole[10:]
    if kind == 2:
        return whole + bytes(rng.choice((1, 511, 70_000)))
    if kind == 3:
        return whole + rng.randbytes(rng.choice((1, 2, 18, 600)))
    if kind == 4:  # checksum or length wrong
        place = len(whole) - 1 - rng.randrange(8)
        return whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
    if kind == 5:
        return whole[: rng.randrange(len(whole))]
    if kind == 6:
        return gzip.compress(whole, 1, mtime=0)
    if kind == 7:
        return mutated(whole, rng)
    if kind == 8:  # far more than the header says
        return whole + gzip.compress(bytes(rng.choice((1 << 10, 3 << 20))), 9, mtime=0)
    return whole


def changed_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place changed: replaced, lost, doubled, renamed or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        action = rng.randrange(10)
        if action == 0:
            return {name: item for name, item in value.items() if name != key}
        if action == 1:
            return value | {rng.choice(WORDS): value[key]}
        return value | {key: changed_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        action = rng.randrange(10)
        if action == 0:
            return value[:place] + value[place + 1 :]
        if action == 1:
            return value + value[place : place + 1] * rng.choice((1, 2, 100))
        return [*value[:place], changed_value(value[place], rng), *value[place + 1 :]]
    if rng.random() < 0.1:
        for _ in range(rng.choice((1, 30, 70, 300))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(VALUES)


def json_text(value: Any, rng: random.Random) -> bytes:
    """JSON of a value, changed; now and then with faults that no value can have."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = changed_value(value, rng)
    text = json.dumps(value)
    kind = rng.randrange(12)
    if kind == 0 and text.startswith("{"):  # a key twice
        text = text[:-1] + ", " + text[1:]
    if kind == 1:
        text = text.replace(rng.choice(("0", "1", "null", "true")), "9" * rng.choice((20, 5000)), 1)
    if kind == 2:
        text = "[" * rng.choice((100, 2000, 50_000)) + text
    data = text.encode()
    if kind == 3:
        data = b"\xef\xbb\xbf" + data
    return mutated(data, rng) if kind > 8 else data


def yaml_text(text: str, rng: random.Random) -> bytes:
    """YAML with tokens put in, lines doubled, lost or indented."""
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(lines))
        line, action = lines[place], rng.randrange(6)
        if action == 0:
            lines[place] = line.split(":")[0] + ": " + rng.choice([*YAML, *WORDS, "1e-4", "-1"])
        elif action == 1:
            cut = rng.randrange(len(line) + 1)
            lines[place] = line[:cut] + rng.choice(YAML) + line[cut:]
        elif action == 2:
            lines.insert(rng.randrange(len(lines)), line)
        elif action == 3 and len(lines) > 1:
            del lines[place]
        elif action == 4:
            lines[place] = " " * rng.randrange(5) + line.strip()
        else:
            value = rng.choice([*WHOLE, *REAL])
            lines[place] = f"{line.split(':')[0]}: {value}"
    data = "\n".join(lines).encode(errors="surrogatepass")
    return mutated(data, rng) if rng.random() < 0.15 else data


def rezipped(data: bytes, rng: random.Random) -> bytes:
    """A stored zip whose entries are changed with checksums that fit, or the zip's own bytes."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    place = rng.randrange(len(entries))
    if rng.random() < 0.6:  # the pickle, where the danger is
        place = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    name, content = entries[place]
    action = rng.randrange(8)
    if action == 0:
        del entries[place]
    elif action == 1:
        entries[place] = (rng.choice(("archive/data.pkl", "../x", "archive/data/0", "x")), content)
    else:
        entries[place] = (name, mutated(content, rng, entries[0][1]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            packing = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return buffer.getvalue()
