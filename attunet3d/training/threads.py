"""Threads that each compute on one core: for many pieces of work side by side."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import torch


def one_core_threads(count: int, name: str) -> ThreadPoolExecutor:
    """`count` threads whose torch operators run on one core; all other threads keep theirs.

    Raises:
        RuntimeError: The machine gives no more threads.

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
    except BaseException:  # those that wait must not do so for ever
        together.abort()
        pool.shutdown()
        raise
    finally:  # each has its setting, which now also is the default of new threads: restore that
        torch.set_num_threads(threads)
    return pool
