"""The one error that a user can cause; everything else is a bug of ours."""


class UserError(ValueError):
    """Something a user can cause and mend: a file, a value or a call that breaks a rule.

    The message is one line with the file, the value, the rule and the cure. The command line
    prints it without a traceback; each module defines its own subclass beside what raises it.
    Control characters, which files from elsewhere may hold, are shown and not obeyed.

    Example:
        >>> str(UserError("scan.nii.gz: no such file; check the path"))
        'scan.nii.gz: no such file; check the path'
    """

    def __init__(self, message: object) -> None:
        line = " ".join(str(message).split())
        if not line.isprintable():
            line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        super().__init__(line)
