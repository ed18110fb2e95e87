"""Throughput, bottlenecks, time and cost of fleets: the table and the figure of docs/scale.md.

    python -m benchmarks.scale

Service times around the network are measured (`services`); the GPU's seconds per scan, the
bandwidths and the prices are assumptions, named in the output.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.scale.services import Services, load
from benchmarks.scale.simulation import Fleet, bottleneck, simulate

FLEETS = {  # assumptions: a workstation, a server, a cluster with a parallel file system
    "1 GPU": Fleet(1, cores_per_gpu=8, storage_bytes_s=1e9, scheduler_s=0),
    "8 GPUs": Fleet(8, cores_per_gpu=8, storage_bytes_s=4e9, scheduler_s=0.001),
    "1,000 GPUs": Fleet(1000, cores_per_gpu=8, storage_bytes_s=100e9, scheduler_s=0.0005),
}
COUNTS = {"100 scans": 100, "10⁴ scans": 10**4, "10⁷ scans": 10**7}
NETWORK_S = (0.02, 0.1, 0.5)
GPU_HOUR, CORE_HOUR = 2.5, 0.04  # assumed prices in dollars
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
PER_GPU = 60  # scans that the simulation sends through each GPU


def row(name: str, services: Services, fleet: Fleet) -> dict[str, Any]:
    """One fleet with one network: the law, the simulation, hours and cost."""
    slowest, law = bottleneck(services, fleet)
    simulated = simulate(services, fleet, max(300, PER_GPU * fleet.gpus))
    hour = fleet.gpus * (GPU_HOUR + fleet.cores_per_gpu * CORE_HOUR)
    return {
        "fleet": name,
        "network_s": services.network_s,
        "bottleneck": slowest,
        "law_scans_per_s": round(law, 3),
        "simulated_scans_per_s": round(simulated, 3),
        "hours": {count: scans / simulated / 3600 for count, scans in COUNTS.items()},
        "dollars_per_scan": hour / 3600 / simulated,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as markdown."""
    return measure.markdown(
        {
            "fleet": found["fleet"],
            "network, GPU s": f"{found['network_s']:g}",
            "slowest": found["bottleneck"],
            "law, scans/s": f"{found['law_scans_per_s']:.3g}",
            "simulated": f"{found['simulated_scans_per_s']:.3g}",
            **{count: spell(found["hours"][count]) for count in COUNTS},
            "$ per scan": f"{found['dollars_per_scan']:.2g}",
        }
        for found in rows
    )


def spell(hours: float) -> str:
    """Hours in a unit that reads well.

    Example:
        >>> spell(0.01), spell(5), spell(100)
        ('36 s', '5 h', '4.2 days')
    """
    if hours < 1 / 60:
        return f"{3600 * hours:.2g} s"
    if hours < 1:
        return f"{60 * hours:.2g} min"
    return f"{hours:.2g} h" if hours < 72 else f"{hours / 24:.2g} days"


def draw(services: Services, path: Path) -> None:
    """Throughput against the number of GPUs, for three speeds of the network."""
    import matplotlib

    matplotlib.use("Agg")
    from dataclasses import replace

    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5))
    base = FLEETS["1,000 GPUs"]
    for network_s, colour in zip(NETWORK_S, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        now = replace(services, network_s=network_s)
        law = [bottleneck(now, replace(base, gpus=n))[1] for n in SIZES]
        found = [simulate(now, replace(base, gpus=n), max(300, 20 * n)) for n in SIZES]
        axis.loglog(SIZES, law, color=colour, label=f"law, network {network_s:g} s")
        axis.loglog(SIZES, found, "o", color=colour, label="simulated")
    storage = base.storage_bytes_s / (services.bytes_in + services.bytes_out)
    axis.axhline(storage, color="0.5", linestyle="--", label="storage at 100 GB/s")
    axis.axhline(1 / base.scheduler_s, color="0.5", linestyle=":", label="one scheduler, 0.5 ms")
    axis.set(xlabel="GPUs", ylabel="scans per second", title="8 cores per GPU")
    axis.grid(alpha=0.25, which="both")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print the table, save the figure."""
    from dataclasses import replace

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    figure = Path(__file__).parents[2] / "docs" / "scale.png"
    parser.add_argument("--figure", type=Path, default=figure)
    options = parser.parse_args(argv)
    services = load(NETWORK_S[0])
    rows = [
        row(name, replace(services, network_s=network_s), fleet)
        for name, fleet in FLEETS.items()
        for network_s in NETWORK_S
    ]
    print(table(rows))
    draw(services, options.figure)
    print(measure.save("scale", {"rows": rows}, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
