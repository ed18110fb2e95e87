"""Torch's global state and errors during a run: seeds, cuDNN, threads, memory that runs out."""

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np
import torch

from attunet3d.core import DeviceError, machine


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of torch's random numbers in a step of a process, the same on every Python.

    Example:
        >>> step_seed(0, 1) == step_seed(0, 1) != step_seed(1, 0)
        True
    """
    sequence = np.random.SeedSequence([seed, step], spawn_key=(rank,) if rank else ())
    return int(sequence.generate_state(1, np.uint64)[0]) % 2**63


@contextmanager
def own_torch_state(device: torch.device) -> Generator[None]:
    """Within the block torch's random numbers and cuDNN's choice of kernels are the run's own."""
    benchmark = torch.backends.cudnn.benchmark
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            torch.backends.cudnn.benchmark = device.type == "cuda"  # patches are of one size
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark


@contextmanager
def memory_error_in_one_line(device: torch.device) -> Generator[None]:
    """Turn an error of a block whose memory ran out into a `DeviceError` with a cure."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not machine.ran_out_of_memory(error):
            raise
        raise DeviceError(
            f"the memory of {device} ran out in training",
            cure="set a smaller training.patch_size or training.batch_size in a new run, or end"
            " what else takes memory and go on with --resume",
        ) from error


def one_core_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Start `count` threads whose torch operators use one core each; other threads keep theirs.

    Raises:
        RuntimeError: The system cannot start so many threads.

    Example:
        >>> with one_core_threads(2, "example") as pool:
        ...     pool.submit(torch.get_num_threads).result()
        1
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, name, torch.set_num_threads, (1,))
    together = threading.Barrier(count)
    try:
        wait([pool.submit(together.wait) for _ in range(count)])
    except BaseException:  # release the threads that wait at the barrier
        together.abort()
        pool.shutdown()
        raise
    finally:  # the last number set is also the default of new threads, which is restored here
        torch.set_num_threads(threads)
    return pool
