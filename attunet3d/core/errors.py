"""Exceptions that a user can cause, one class per meaning; any other exception is a bug.

```
UserError            the base of all: one line with the file, the value, the rule and the cure
├── DataError        a scan, a label map, a manifest or a data set breaks a rule
├── FileError        a file or folder cannot be read, or has unexpected content
├── SettingsError    a setting or an argument is out of range, or contradicts another
├── ModelError       a checkpoint, its weights or a network do not fit
├── DeviceError      a device is missing, or its memory is too small
├── WriteError       a file cannot be written, or would overwrite somebody's work
├── TrainingError    a run cannot start, continue or end as requested
└── DependencyError  an optional package is not installed
```
"""

from pathlib import Path
from typing import Self


def one_line(text: object) -> str:
    r"""A text as one line, with control characters escaped.

    Example:
        >>> one_line("not a\n    scan\x1b[2J")
        'not a scan\\x1b[2J'
    """
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    r"""A text, for example a name, with control characters and line breaks escaped.

    Example:
        >>> printable("scan\n1")
        'scan\\n1'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UserError(ValueError):
    """An error that a user can cause and cure: a file, a value or a call that breaks a rule.

    The text is one line, `PATH: RULE; CURE`, which the command line prints without a traceback.
    Control characters, which untrusted files may contain, are escaped.

    Args:
        rule: What is wrong: the rule that was broken, and the value that breaks it.
        path: The file or folder at fault, if there is one.
        value: The value at fault, for programs that show it separately.
        cure: What the user can do about it.

    Example:
        >>> error = UserError("no such file", path=Path("scan.nii.gz"), cure="check the path")
        >>> str(error)
        'scan.nii.gz: no such file; check the path'
        >>> error.cure
        'check the path'
    """

    def __init__(
        self,
        rule: object,
        *,
        path: Path | str | None = None,
        value: object = None,
        cure: str | None = None,
    ) -> None:
        self.path, self.value, self.cure = path, value, cure
        text = f"{rule}" if path is None else f"{path}: {rule}"
        super().__init__(one_line(text if cure is None else f"{text}; {cure}"))

    def within(self, place: object) -> Self:
        """The same error with `place` at the start of its line, such as a case or a file.

        A `Path` also becomes the error's `path` if it has none.

        Example:
            >>> str(DataError("has no voxel", cure="check it").within("case pancreas_001"))
            'case pancreas_001: has no voxel; check it'
        """
        error = self.reworded(f"{place}: {self}")
        if error.path is None and isinstance(place, Path):
            error.path = place
        return error

    def reworded(self, line: str) -> Self:
        """The same error with another line.

        Example:
            >>> str(DataError("is empty", path="/tmp/x1/a.nii").reworded("a.nii: is empty"))
            'a.nii: is empty'
        """
        error = type(self)(line)
        error.path, error.value, error.cure = self.path, self.value, self.cure
        return error


class DataError(UserError):
    """A scan, a label map, a manifest or a data set breaks a rule."""


class FileError(UserError):
    """A file or folder cannot be read, or has unexpected content."""


class SettingsError(UserError):
    """A setting or an argument is out of range, or contradicts another."""


class ModelError(UserError):
    """A checkpoint, its weights or a network do not fit."""


class DeviceError(UserError):
    """A device is missing, or its memory is too small."""


class WriteError(UserError):
    """A file cannot be written, or would overwrite somebody's work."""


class TrainingError(UserError):
    """A run cannot start, continue or end as requested."""


class DependencyError(UserError):
    """An optional package is not installed."""
