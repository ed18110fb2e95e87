"""What is done to a process before its command runs: less memory, fewer rights, NaN at a step.

Each function here is a hook of `fork_server`: it is called in the forked process by its name.
"""

import os
import resource
import signal
from types import SimpleNamespace
from typing import Any

NOBODY = 65534


def become_nobody() -> None:
    """Give up root, whom no permission stops."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def limit_files(size: int) -> None:
    """Let no file grow above `size` bytes: a write then ends in its middle, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def run_out_of_memory(calls: list[int], on_gpu: bool) -> None:
    """Let the calls of the network with these numbers (from 0) end as CUDA's do without memory.

    Args:
        calls: Their numbers, failed ones counted.
        on_gpu: The stitching believes that it is done on a GPU, and so can move to the CPU.
    """
    import torch

    from attunet3d.inference import sliding_window

    row: Any = sliding_window._Row
    gpu = SimpleNamespace(type="cuda")  # `_make_room` then moves to the CPU
    predict, initialise = row._predict, row.__init__
    number = iter(range(10**9))

    def failing(self: Any, *arguments: Any) -> Any:
        if next(number) in calls:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        believed, self.sums_device = self.sums_device, torch.device("cpu")
        outputs = predict(self, *arguments)
        self.sums_device = believed
        return outputs

    def believing(self: Any, *arguments: Any) -> None:
        initialise(self, *arguments)
        self.sums_device = gpu if on_gpu else self.sums_device

    row._predict, row.__init__ = failing, believing


def lose_the_number(call: int) -> None:
    """Let the loss of this call (from 0) be NaN."""
    from attunet3d.training import loss

    build = loss.build_loss
    number = iter(range(10**9))

    def building(*arguments: Any) -> Any:
        criterion = build(*arguments)
        kind = type(criterion)

        def losing(self: Any, *values: Any) -> Any:
            value = kind.__call__(self, *values)
            return value * float("nan") if next(number) == call else value

        object.__setattr__(criterion, "__class__", type("Losing", (kind,), {"__call__": losing}))
        return criterion

    vars(loss)["build_loss"] = building
