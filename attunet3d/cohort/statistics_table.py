"""`statistics.csv` of a folder of results: one row per case and label, made from the sidecars.

The table is never appended to: it is written whole, from what the sidecars of the finished cases
say, so that it is right after a killed call, a resumed one, and one that redid some cases.
"""

import csv
import io
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attunet3d.cohort import results
from attunet3d.core import whole_file

NAME = "statistics.csv"
SHARE = 0.05  # of the time that writing may take: in a large cohort not after every case


class StatisticsTable:
    """The table of a folder; sidecars that stand already are read when it is made.

    Args:
        folder: Output folder of `infer`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / NAME
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._due = 0.0
        for case_id, content in results.each_sidecar(folder):
            self._take(case_id, content)

    def add(self, case_id: str) -> None:
        """Take a case that was just finished, and write the table.

        Raises:
            FileError: Its sidecar cannot be read.
            WriteError: The disk is full or the folder read-only.
        """
        sidecar = results.case_files(self._folder, case_id).sidecar
        self._take(case_id, results.read_sidecar(sidecar))
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write the table, or nothing where no case is done.

        Raises:
            WriteError: The disk is full or the folder read-only.
        """
        begin = time.monotonic()
        rows = [row for _, rows in sorted(self._rows.items()) for row in rows]
        if rows:
            text = io.StringIO()
            writer = csv.DictWriter(text, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            table = text.getvalue()
            if not self._path.is_file() or self._path.read_bytes() != table.encode():
                whole_file.write_text(self._path, table)
        now = time.monotonic()
        self._due = now + (now - begin) / SHARE

    def _take(self, case_id: str, content: Mapping[str, Any]) -> None:
        with suppress(AttributeError, LookupError, TypeError):  # another program's file
            self._rows[case_id] = list(_rows(case_id, content))


def _rows(case_id: str, content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    seconds = round(sum(content.get("seconds", {}).values()), 2)
    for name, volume in content["volumes"].items():
        doubt = content.get("doubt", {}).get(name, {})
        told = ("touches_border", "pieces", "expected_dice", "word")
        yield {
            "case": case_id,
            "label": name,
            "volume_ml": volume["ml"],
            "mean_hu": volume.get("hu_mean"),
            "sd_hu": volume.get("hu_sd"),
            **{part: doubt.get(part) for part in told},
            "seconds": seconds,
        }
