"""Which cases of a call are done, were already done, or failed and why (`failures.json`)."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from attunet3d.core import UserError, one_line, read_json, whole_file

_log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The ids of the cases of a call by their results."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = "done", "already done", "failed"
        counts = zip(map(len, (self.done, self.skipped, self.failures)), words, strict=True)
        return ", ".join(f"{count} {what}" for count, what in counts if count) or "no cases"

    def fail(self, case_id: str, reason: str) -> None:
        """Note that a case failed, and say why."""
        self.failures[case_id] = reason
        _log.error("%s", reason, extra={"case": case_id})

    @contextmanager
    def trying(self, case_id: str) -> Iterator[None]:
        """Let the block fail without ending the call: the other cases go on."""
        try:
            yield
        except Exception as error:
            self.fail(case_id, failure_reason(error))


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """Write `failures.json`, or delete that of an older call if nothing failed."""
    path = Path(folder) / "failures.json"
    if failures:
        whole_file.write_text(path, json.dumps(dict(sorted(failures.items())), indent=2) + "\n")
    else:
        path.unlink(missing_ok=True)


def merge_failures(folder: Path, tried: Iterable[str], failures: Mapping[str, str]) -> None:
    """Update `failures.json` for the cases that were tried, and keep all other cases."""
    path = Path(folder) / "failures.json"
    others = read_json(path) if path.exists() else {}
    gone = set(tried)
    kept = {case: why for case, why in others.items() if case not in gone}
    write_failures(folder, {**kept, **failures})


def failure_reason(error: Exception, *, maps: bool = False) -> str:
    """One line that says why a case failed.

    Args:
        error: What was raised.
        maps: Whether probabilities or attention maps were asked for, which take memory.

    Example:
        >>> failure_reason(FileNotFoundError(2, "No such file or directory", "ct.nii.gz"))
        'ct.nii.gz: No such file or directory'
        >>> failure_reason(MemoryError())
        'out of memory (MemoryError); use a smaller --memory, a smaller window or another device'
    """
    text = one_line(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "allocate memory" in text:
        cure = "use a smaller --memory, a smaller window or another device"
        cure = f"leave the probabilities and attention maps out, or {cure}" if maps else cure
        return f"out of memory ({kind}); {cure}"
    return f"internal error ({kind}: {text}); please report it"
