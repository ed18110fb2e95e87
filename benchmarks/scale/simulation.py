"""Scans through GPUs, cores and storage: the law of the slowest stage, and a simulation of it.

The law: a fleet can do no more scans per second than its slowest resource,

    min(G / t_network,  C / t_cores,  B / bytes,  1 / t_scheduler).

The simulation (simpy) lets scans queue for the same resources one by one, with service times that
vary, and a bounded number read ahead for each GPU. But for the chance of the drawn sizes it stays
below the law; how far below is what queueing costs.
"""

import math
import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from benchmarks.scale.services import Services

STREAM_BYTES_S = 500e6  # the most that one transfer gets of the storage's bandwidth
AHEAD = 4  # scans of a worker beyond one for each core: on their way to and from storage
SPREAD = 0.35  # standard deviation of the logarithm of a service time: scans differ in size


@dataclass(frozen=True)
class Fleet:
    """What works.

    Args:
        gpus: Number of GPUs, a worker process each.
        cores_per_gpu: Processor cores for each of them.
        storage_bytes_s: Bandwidth of the storage that all share.
        scheduler_s: Time that the one scheduler takes to hand out a scan.
    """

    gpus: int
    cores_per_gpu: float = 4
    storage_bytes_s: float = 2e9
    scheduler_s: float = 0.001


def limits(services: Services, fleet: Fleet) -> dict[str, float]:
    """Scans per second that each resource alone would allow."""
    return {
        "GPUs": fleet.gpus / services.network_s,
        "cores": fleet.gpus * fleet.cores_per_gpu / services.core_s,
        "storage": fleet.storage_bytes_s / (services.bytes_in + services.bytes_out),
        "scheduler": 1 / fleet.scheduler_s if fleet.scheduler_s else math.inf,
    }


def bottleneck(services: Services, fleet: Fleet) -> tuple[str, float]:
    """The slowest resource, and the scans per second that it allows."""
    found = limits(services, fleet)
    name = min(found, key=lambda key: found[key])
    return name, found[name]


def simulate(services: Services, fleet: Fleet, scans: int, seed: int = 0) -> float:
    """Scans per second when `scans` of them pass, the first and last tenth left out."""
    rng = random.Random(seed)
    environment = simpy.Environment()
    scheduler = simpy.Resource(environment)
    stream_bytes_s = min(STREAM_BYTES_S, fleet.storage_bytes_s)
    storage = simpy.Resource(environment, round(fleet.storage_bytes_s / stream_bytes_s))
    cores = [
        simpy.Resource(environment, max(1, round(fleet.cores_per_gpu))) for _ in range(fleet.gpus)
    ]
    gpus = [simpy.Resource(environment) for _ in range(fleet.gpus)]
    ended: list[float] = []
    left = iter(range(scans))

    def hold(resource: simpy.Resource, seconds: float) -> Generator[Any, Any, None]:
        with resource.request() as turn:
            yield turn
            yield environment.timeout(seconds)

    def transfer(size: float) -> Generator[Any, Any, None]:
        yield from hold(storage, size / stream_bytes_s)

    def slot(worker: int) -> Generator[Any, Any, None]:
        """One of the places of a worker: takes scans until there are no more."""
        for _ in left:
            size = rng.lognormvariate(-(SPREAD**2) / 2, SPREAD)  # its mean is 1
            yield from hold(scheduler, fleet.scheduler_s)
            yield from transfer(services.bytes_in * size)
            yield from hold(cores[worker], (services.read_s + services.resample_s) * size)
            yield from hold(gpus[worker], services.network_s * size)
            yield from hold(cores[worker], (services.decide_s + services.write_s) * size)
            yield from transfer(services.bytes_out * size)
            ended.append(environment.now)

    for worker in range(fleet.gpus):
        for _ in range(round(fleet.cores_per_gpu) + AHEAD):
            environment.process(slot(worker))
    environment.run()
    first, last = len(ended) // 10, len(ended) - len(ended) // 10 - 1
    return (last - first) / (ended[last] - ended[first])
