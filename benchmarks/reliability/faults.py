"""Full disks, read-only folders, inputs that vanish, memory that runs out, NaN: who is harmed?

    python -m benchmarks.reliability.faults FOLDER [--small]

Every fault strikes some cases of a call of `attunet3d infer`, or a run of `attunet3d train`. Good
is: one line that names what was hit and why, the other cases done as without the fault, nothing
half-written, exit status 1 (training: 2) and no traceback; once the cause is fixed the same call
finishes, and a training ends bit-identical. As root the disks are real: a small tmpfs, filled or
mounted read-only, and rights are those of `nobody`; otherwise the limit on a file's size and the
user's own rights stand in.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability import cohort_check, faults_infer, faults_train, inputs
from benchmarks.reliability.fork_server import ForkServer
from benchmarks.reliability.rows import row


def run(folder: Path, small: bool) -> dict[str, Any]:
    """Let each fault strike once, and return a row for each."""
    rows: list[dict[str, Any]] = []
    troubles: list[str] = []

    def strike(fault: Callable[..., list[str] | None], subject: Any) -> None:
        what = (fault.__doc__ or "").strip().splitlines()[0].rstrip(".")
        try:
            found = fault(subject)
        except Exception as error:  # the harness stumbled over what it found: also a trouble
            found = [f"{type(error).__name__}: {error}"]
        if found is None:
            print(f"not possible here: {what}", flush=True)
            return
        rows.append(row(what, 1, int(bool(found)), "; ".join(found)[:200]))
        troubles.extend(f"{what}: {text}" for text in found)
        print(f"{'bad ' if found else 'good'} {what}", flush=True)

    with ForkServer() as server:
        cohort = cohort_check.prepare(server, folder / "infer")
        for fault in faults_infer.FAULTS[: 6 if small else None]:
            strike(fault, cohort)
        if not small:
            training = faults_train.prepare(server, folder / "train")
            for training_fault in faults_train.FAULTS:
                strike(training_fault, training)
    return {"rows": rows, "troubles": troubles}


if __name__ == "__main__":
    inputs.main(run, __doc__)
