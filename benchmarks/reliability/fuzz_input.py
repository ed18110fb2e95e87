"""What a fuzzed input is, and what is said when two readers take different things from it."""

Files = dict[str, bytes]  # by name; the first is what the reader is given
MOST_VOXELS = 1 << 24


class DisagreementError(Exception):
    """Ours and another reader read different things."""
