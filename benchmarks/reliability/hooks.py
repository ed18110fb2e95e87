"""What is done to a process before its command runs: less memory, fewer rights, NaN at a step.

Each function here is a hook of `preloaded`: it is called in the forked process by its name.
"""

import os
import resource
import signal
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
        on_gpu: The stitching takes its arrays for a GPU's, and so moves them to the CPU.
    """
    import torch

    from attunet3d import sliding_window

    class OnGpu(torch.Tensor):
        is_cuda = True

        def cpu(self) -> torch.Tensor:  # type: ignore[override]
            return self.as_subclass(torch.Tensor)

    row = sliding_window._Row
    predict, initialise = row._predict, row.__init__
    number = iter(range(10**9))

    def failing(self: Any, *arguments: Any) -> Any:
        if next(number) in calls:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return predict(self, *arguments)

    def elsewhere(self: Any, *arguments: Any) -> None:
        initialise(self, *arguments)
        self.weights = self.weights.as_subclass(OnGpu)

    row._predict = failing  # type: ignore[method-assign]
    if on_gpu:
        row.__init__ = elsewhere  # type: ignore[method-assign]


def run_out_of_memory_whole() -> None:
    """Let every pass over a whole volume end as CUDA's do without memory."""
    import torch

    from attunet3d import forward

    def failing(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    forward.whole_volume = failing


def lose_the_number(call: int) -> None:
    """Let the loss of this call (from 0) be NaN."""
    from attunet3d import loss

    build = loss.build_loss
    number = iter(range(10**9))

    def building(*arguments: Any) -> Any:
        criterion = build(*arguments)

        def losing(*values: Any) -> Any:
            value = criterion(*values)
            return value * float("nan") if next(number) == call else value

        return losing

    loss.build_loss = building
