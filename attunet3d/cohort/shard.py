"""One part of many of a cohort: which scans it has is a function of their ids alone."""

import hashlib
import re
from dataclasses import dataclass

from attunet3d.core import SettingsError, case_names


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1.

    Every scan is in one part, whatever other scans there are, so parts that are done at different
    times or on different machines are disjoint.

    Example:
        >>> parts = [Shard(1, 2), Shard(2, 2)]
        >>> [[case_id for case_id in "abcdef" if part.has(case_id)] for part in parts]
        [['a', 'b', 'c', 'e', 'f'], ['d']]
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The part that a text such as "2/8" names.

        Raises:
            SettingsError: It names none.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise SettingsError(
                f"--shard {text}: must be I/N with I from 1 to N",
                value=text,
                cure="write the second of eight parts as 2/8",
            )
        return cls(number, count)

    def has(self, case_id: str) -> bool:
        """Whether a case is in this part; ids that some file systems take for one are together."""
        digest = hashlib.sha256(case_names.folded(case_id).encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest()[:8]) % self.count == self.number - 1
