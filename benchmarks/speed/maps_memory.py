"""Peak memory of `infer` with and without its maps, and of `export` of several folders.

Usage: python -m benchmarks.speed.maps_memory [--small] [--out FOLDER]

A scan of 512×512×800 voxels, 20 labels and 6 gate maps; then five folders of probabilities of 30
labels. The network is small and its weights are random: memory depends on the numbers of voxels,
labels and maps, not on what is found.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from attunet3d.core import Config
from attunet3d.models import build_network, save_model
from benchmarks import measure
from benchmarks.speed.clinical_scan import write_clinical_scan

SHAPE, SMALL = (512, 512, 800), (96, 96, 60)
FOLDERS, EXPORTED_LABELS, LABELS = 5, 30, 20
SETTINGS = [
    "network.channels=[4, 8, 8, 8, 8]",
    "network.strides=[[2,2,2],[2,2,2],[2,2,2],[2,2,2]]",
    "network.gate=double",
    "preprocessing.spacing_mm=[3, 3, 3]",
    "preprocessing.mean_hu=40",
    "preprocessing.std_hu=100",
    "training.patch_size=[64, 64, 64]",
]


def write_model(path: Path, labels: int) -> Path:
    """A network of random weights that answers background nearly everywhere."""
    config = Config().with_overrides(SETTINGS)
    torch.manual_seed(0)
    network = build_network(config.network, 1, labels + 1)
    state = network.state_dict()
    bias = next(name for name in reversed(state) if name.endswith("bias"))
    state[bias][0] += 6.0
    names = {value: f"organ_{value}" for value in range(1, labels + 1)}
    save_model(path, state, config, {0: "background", **names})
    return path


def peak(*words: str | Path) -> dict[str, Any]:
    """Peak resident memory (MB) and seconds of a command."""
    command = [sys.executable, "-m", "attunet3d", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    seconds = round(usage.ru_utime + usage.ru_stime, 1)
    return {"peak_mb": round(usage.ru_maxrss * 1024 / 1e6), "processor_seconds": seconds}


def main() -> None:
    options = measure.parser(__doc__, repeats=1).parse_args()
    shape = SMALL if options.small else SHAPE
    rows = []
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        folder = Path(name)
        scan = write_clinical_scan(folder, shape)
        model = write_model(folder / "organs.safetensors", LABELS)
        maps = ["--save-probabilities", "--save-attention"]
        for what, words in (("infer", []), ("infer with 20 + 6 maps", maps)):
            found = peak("infer", model, scan, folder / what, "--device", "cpu", *words)
            rows.append({"call": what, **found})
            print(rows[-1], flush=True)
            shutil.rmtree(folder / what)
        model = write_model(folder / "more.safetensors", EXPORTED_LABELS)
        first = folder / "fold0"
        peak("infer", model, scan, first, "--device", "cpu", maps[0])
        others = [folder / f"fold{number}" for number in range(1, FOLDERS)]
        for other in others:
            shutil.copytree(first, other, copy_function=os.link)
        found = peak("export", first, *others, folder / "exported")
        rows.append({"call": f"export of {FOLDERS} × {EXPORTED_LABELS} labels", **found})
    print(measure.markdown(rows))
    print(measure.save("maps_memory", {"scan": list(shape), "rows": rows}, options.out))


if __name__ == "__main__":
    main()
