"""Headers that claim far too much, and streams that unpack to far too much: seconds and memory.

Each file is given alone to `attunet3d infer`, and to the peers in children of their own. We must
refuse each by name within 2 s of processor time beyond start-up, the whole call below 1 GB.
"""

import statistics
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability import infer_verdicts
from benchmarks.reliability.command import ROOT
from benchmarks.reliability.corpus_files import Corpus, Entry, at
from benchmarks.reliability.model import make_model
from benchmarks.reliability.nifti_bytes import CODES, header, packed, stored
from benchmarks.reliability.peers import PEERS, load_rows
from benchmarks.reliability.rows import row
from benchmarks.reliability.verdicts import OVER, RIGHT, Verdict

MOST_SECONDS, MOST_MB = 2.0, 1000.0
BLOCK = 1 << 24
STARTS = 3  # calls from which the seconds of start-up are told


def zeros(count: int, before: bytes = b"") -> bytes:
    """One gzip member of `before` and then `count` zeros, a multiple of `BLOCK`; made fast."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    times = count // BLOCK
    check = zlib.crc32(before)
    for _ in range(times):
        check = zlib.crc32(bytes(BLOCK), check)
    length = (len(before) + count) % 2**32
    tail = packer.flush() + check.to_bytes(4, "little") + length.to_bytes(4, "little")
    return b"\x1f\x8b\x08" + bytes(7) + head + block * times + tail


def claim(*sizes: int, dtype: str = "i2", version: int = 1, **fields: Any) -> bytes:
    """A header that claims a volume, and the four bytes after it."""
    dims = [len(sizes), *sizes, *[1] * (7 - len(sizes))]
    bits = 8 * int(dtype[1:])
    claimed = {"dim": dims, "datatype": CODES[dtype], "bitpix": bits, **at("bomb").fields, **fields}
    return header(claimed, version) + bytes(4)


def make_bombs(folder: Path, small: bool) -> list[Entry]:
    """Write them as a corpus; `small`: every second one, of 256 MB in place of 4 GB."""
    corpus = Corpus(folder)
    corpus.group = "bombs"
    size = BLOCK * (16 if small else 256)
    raw = stored(at("sound"))[0]
    noise = np.random.default_rng(0).bytes(8 << 20)
    unfinished = packed(claim(1024, 1024, 900, dtype="f8") + noise, 0)[:-99]
    files = {
        "claims_30000_cubed": (packed(claim(30000, 30000, 30000)), "54 TB"),
        "claims_1500_1500_900": (packed(claim(1500, 1500, 900)), "4 GB"),
        "claims_the_limit": (packed(claim(1024, 1024, 900, dtype="f8")), "7.5 GB in 0.2 kB"),
        "claims_in_a_larger_file": (
            unfinished,
            "7.5 GB, and 8 MB of noise that could hold it",
        ),
        "claims_volumes": (packed(claim(9, 9, 9, *[32767] * 4)), "32767⁴ volumes"),
        "claims_2_to_the_64": (packed(claim(2**32, 2**32, 1, version=2)), "overflows 64 bits"),
        "claims_offset": (packed(claim(9, 9, 9, version=2, vox_offset=2**40)), "a TB of extension"),
        "small_header": (zeros(size, raw), "more behind a sound scan"),
        "small_header_members": (packed(raw) + zeros(BLOCK) * (size // BLOCK), "more members"),
        "true_header": (zeros(1 << 31, claim(1024, 1024, 1024)), "2 GiB of zeros, as it says"),
        "no_header": (zeros(size), "zeros from the first byte on"),
        "empty_members": (packed(b"") * (size >> 14), "members that hold nothing"),
    }
    for name, (data, why) in list(files.items())[:: 2 if small else 1]:
        corpus.bad(f"bomb_{name}.nii.gz", data, why)
    corpus.path("bomb_pair.img").write_bytes(raw[352:])
    pair = claim(28, 32, 24, magic=b"ni1\0", vox_offset=0)
    corpus.bad("bomb_pair.hdr.gz", zeros(size, pair), "a .hdr that unpacks to more")
    corpus.save()
    return corpus.entries


def run(folder: Path, small: bool) -> dict[str, Any]:
    """A row a bomb: seconds and memory of us and of each peer."""
    model = make_model(folder / "model")
    corpus = folder / "bombs"
    entries = make_bombs(corpus, small)
    text = folder / "no_scan.nii.gz"
    text.write_text("not a scan\n")
    starts = [infer_verdicts.run_infer(text, model, folder / f"start{n}") for n in range(STARTS)]
    start = statistics.median(start.cpu_seconds for start in starts)
    table = [_ours(entry, corpus, model, folder, start) for entry in entries]
    peers = {peer: _peer(peer, corpus, folder) for peer in PEERS}
    for line in table:
        line |= {peer: found[line["file"]] for peer, found in peers.items()}
        print(f"bombs: {line['file']}: {line['verdict']}, {line['seconds']} s", flush=True)
    bad = [line for line in table if line["verdict"] != RIGHT]
    peak, slowest = (max(line[name] for line in table) for name in ("peak_mb", "seconds"))
    note = f"peak {peak:.0f} MB, slowest refusal {slowest:.1f} s beyond start-up of {start:.1f} s"
    rows = [row("bombs", len(table), len(bad), note)]
    return {"start_seconds": round(start, 2), "bombs": table, "rows": rows}


def _ours(entry: Entry, corpus: Path, model: Path, folder: Path, start: float) -> dict[str, Any]:
    out = folder / "out_bombs" / infer_verdicts.case_id(entry.file)
    called = infer_verdicts.run_infer(corpus / entry.file, model, out, seconds=60)
    verdict = infer_verdicts.judge([entry], corpus, out, called)[0]
    seconds = max(0.0, called.cpu_seconds - start)  # a hang ends at 60 s
    if verdict.verdict == RIGHT and (seconds > MOST_SECONDS or called.peak_mb > MOST_MB):
        verdict = Verdict(entry.file, OVER, "refused, but too slowly or too dearly")
    size = (corpus / entry.file).stat().st_size
    used = {"bytes": size, "seconds": round(seconds, 2), "peak_mb": round(called.peak_mb)}
    return {**verdict.to_dict(), **used, "why": entry.why}


def _peer(peer: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """The peer's row for each file."""
    path = folder / f"{peer}_bombs.json"
    module = [sys.executable, "-m", "benchmarks.reliability.peers", peer]
    subprocess.run([*module, corpus, path], cwd=ROOT, check=True)
    return {row["file"]: row for row in load_rows(path)}
