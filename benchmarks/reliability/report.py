"""The page of results."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import measure
from benchmarks.reliability.corpus import OURS
from benchmarks.reliability.peers import PEERS
from benchmarks.reliability.verdicts import VERDICTS, WRONG

NAMES = {OURS: OURS, "monai": "MONAI `LoadImage`", "simpleitk": "SimpleITK `ReadImage`"}
MOST_LISTED = 12
NOTES = """\
*Right*: read with the right voxels at the right place (ours: a label map on the source's grid, its
geometry bit-equal, the ball within half a voxel and 1 mm, a warning where one is due), or refused
in words that name the file. *Silently wrong*: read, but a position or a value is not the file's.
*Bad accepted*: damaged or contradictory, and read all the same. *Unnamed*: refused without the
file's name. *Over limits*: more than 3 GiB beyond the imports, 20 s, or a crash. A warning is asked
of us alone. In brackets: of the bad accepted, those that are sound NIfTI but no scan (several
volumes, 2D, colour, complex, all NaN), which a general reader may well take. The own corpus and
its expectations were written with this reader, from the standard and from the rules in
`attunet3d/imaging/nifti_header.py`: its peers were judged by rules that are ours."""


def markdown(results: dict[str, dict[str, Any]], machine: dict[str, Any], small: bool) -> str:
    """The whole page.

    Args:
        results: What each part returned, by its name.
        machine: As `measure.machine` has it.
        small: Whether only a part of everything was run.
    """
    minutes = sum(part["part_seconds"] for part in results.values()) / 60
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Reliability",
        "",
        f"Made by `make reliability`{' (--small)' if small else ''} in {minutes:.1f} minutes on"
        f" {machine['cores']} cores of {machine['processor']}, {machine['memory_gb']:.0f} GB;"
        f" {versions}.",
        "",
        *_rows(results),
        *(_corpora(results["corpus"]) if "corpus" in results else []),
        *(_bombs(results["bombs"]) if "bombs" in results else []),
    ]
    return "\n".join(lines) + "\n"


def _rows(results: dict[str, dict[str, Any]]) -> list[str]:
    heads = "attunet3d", "tried", "as it should be", "not", ""
    rows = [row for part in results.values() for row in part["rows"]]
    names = "what", "tried", "good", "bad", "note"
    return [_table(heads, ([row[name] for name in names] for row in rows)), ""]


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return measure.markdown(dict(zip(heads, map(_cell, row), strict=True)) for row in rows)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _corpora(part: dict[str, Any]) -> list[str]:
    rows = []
    for corpus, readers in part["files"].items():
        for reader, result in readers.items():
            counts = dict(result["counts"])
            no_scan = result["bad_accepted_but_sound_nifti"]
            counts["bad accepted"] = f"{counts['bad accepted']}" + (f" ({no_scan})" * bool(no_scan))
            rows.append([corpus, NAMES[reader], result["tried"], *counts.values()])
    table = _table(("corpus", "reader", "files", *VERDICTS), rows)
    lines = ["## Odd, damaged and hostile files", "", table]
    lines += ["", NOTES, "", "Silently wrong in the own corpus:", ""]
    for reader in PEERS:
        wrong = [x for x in part["files"]["own"][reader]["not_right"] if x["verdict"] == WRONG]
        shown = [f"`{x['file'].split('/')[-1]}` ({x['detail']})" for x in wrong[:MOST_LISTED]]
        lines.append(f"* {PEERS[reader]}: {', '.join(shown) or 'none'}")
    faults = _faults(part)
    return [*lines, "", *(["Ours, not as it should be:", "", *faults, ""] if faults else [])]


def _faults(part: dict[str, Any]) -> list[str]:
    found = [(name, readers[OURS]) for name, readers in part["files"].items()]
    lines = []
    for name, result in found + list(part["pairs"].items()):
        lines += [f"* {name}: {x['file']}: {x['verdict']}" for x in result["not_right"]]
        lines += [f"* {name}: {text}" for text in result["faults"]]
    return lines


def _bombs(part: dict[str, Any]) -> list[str]:
    heads = ["file", "what"]
    heads += [f"{name}: {unit}" for name in ("ours", *PEERS.values()) for unit in ("s", "MB")]
    rows = []
    for row in part["bombs"]:
        cells = [row["file"].split("bomb_")[-1], row["why"], row["seconds"], row["peak_mb"]]
        for peer in PEERS:
            found = row[peer]
            cells += [f"{found['seconds']:.1f} {found['verdict']}", found["peak_mb"]]
        rows.append(cells)
    return [
        *("## Bombs", "", _table(heads, rows), ""),
        f"Ours: processor seconds beyond those of start-up ({part['start_seconds']} s), and the"
        " peak of the whole call. Peers: seconds of reading alone, in a process that has imported"
        " them, and its peak; they may take 3 GiB and 20 s.",
    ]
