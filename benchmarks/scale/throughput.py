"""Scans per second against workers: measured on this machine, and simulated beyond.

    python -m benchmarks.scale.throughput [--scans N]

`attunet3d infer` segments the same scans with 1 and with 2 processes on the CPU, one thread each;
the rate is that between the first and the last result, so start-up does not count. The simulation
is given the time per scan of the run with one process, and a core per worker.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.reliability import inputs
from benchmarks.scale.services import Services
from benchmarks.scale.simulation import Fleet, simulate

WORKERS, SIMULATED = (1, 2), (1, 2, 4, 8, 16, 32)
VOXELS = 96  # along each side of a scan


def measured(folder: Path, scans: int) -> dict[str, Any]:
    """Scans per second by workers, and the mean seconds per scan, by stage."""
    inputs.write_model(str(folder / "model.safetensors"))
    inputs.write_scans(str(folder / "scans"), scans, VOXELS)
    rates, stages = {}, {}
    for workers in WORKERS:
        out = folder / f"out{workers}"
        command = [sys.executable, "-m", "attunet3d", "infer", str(folder / "model.safetensors")]
        command += [str(folder / "scans"), str(out), "--device", ",".join(["cpu"] * workers)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        sidecars = list(out.glob("scan_*.json"))
        times = sorted(path.stat().st_mtime for path in sidecars)
        rates[workers] = (len(times) - workers) / (times[-1] - times[workers - 1])
        if workers == 1:
            seconds = [json.loads(path.read_text("utf-8"))["seconds"] for path in sidecars]
            stages = {name: sum(s[name] for s in seconds) / scans for name in seconds[0]}
    size = sum(path.stat().st_size for path in (folder / "scans").iterdir()) / scans
    return {"scans_per_second": rates, "seconds": stages, "bytes": size}


def simulated(found: dict[str, Any]) -> dict[int, float]:
    """Scans per second of as many workers as in `SIMULATED`, each with a core of its own.

    On a CPU the network takes the core as well, so a scan holds one resource for its whole time.
    """
    whole = 1 / found["scans_per_second"][1]
    services = Services(0, 0, whole, 0, 0, bytes_in=found["bytes"], bytes_out=0)
    fleets = {n: Fleet(n, cores_per_gpu=1, scheduler_s=0.001) for n in SIMULATED}
    return {n: simulate(services, fleet, max(300, 60 * n)) for n, fleet in fleets.items()}


def draw(found: dict[str, Any], beyond: dict[int, float], path: Path) -> None:
    """Both against the number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rates = found["scans_per_second"]
    figure, axis = plt.subplots(figsize=(6, 4.5))
    ideal = [rates[1] * n for n in SIMULATED]
    axis.loglog(SIMULATED, ideal, "--", color="0.6", label="in proportion")
    axis.loglog(list(beyond), list(beyond.values()), "o-", label="simulated", markerfacecolor="w")
    axis.loglog(list(rates), list(rates.values()), "s", color="tab:red", label="measured")
    axis.set_xticks(SIMULATED, [str(n) for n in SIMULATED])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="workers, a core each", ylabel="scans per second")
    axis.set_title(f"{VOXELS}³ voxels, {measure.machine()['processor']}", fontsize=10)
    axis.grid(alpha=0.25, which="both")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, simulate, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    figure = Path(__file__).parents[2] / "docs" / "throughput.png"
    parser.add_argument("--figure", type=Path, default=figure)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options.scans)
    beyond = simulated(found)
    print(json.dumps({**found, "simulated": beyond}, indent=1))
    draw(found, beyond, options.figure)
    command = f"python -m benchmarks.scale.throughput --scans {options.scans}"
    content = {"command": command, **found, "simulated": beyond}
    print(measure.save("throughput", content, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
