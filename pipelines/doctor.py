"""Say whether this machine is fit, a line for each part, and what would cure what is not.

Versions, optional parts, processor, threads, memory, disk and GPUs are looked at, and a small
network is tried on each device. Exit status: 0 all in order, 1 something is not.
"""

from collections.abc import Sequence

from attunet3d.core import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Print each finding as it is made."""
    parser = command_line.parser(__doc__)
    parser.parse_args(argv)

    from attunet3d.diagnosis import diagnose  # torch comes with it; --help does without

    warned = False
    for finding in diagnose():
        print(finding, flush=True)
        warned |= finding.cure is not None
    return 1 if warned else 0
