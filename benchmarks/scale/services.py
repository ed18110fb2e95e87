"""What a scan asks of a machine: processor seconds by stage, measured, and bytes.

    python -m benchmarks.scale.services

measures the stages around the network on a clinical scan in one thread and writes
`benchmarks/results/services.json`. Processor seconds and not wall-clock: what else the machine does
hardly changes them.
"""

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure


@dataclass(frozen=True)
class Services:
    """What one scan takes.

    Args:
        read_s: Core seconds to decompress and check it.
        resample_s: Core seconds to bring it onto the network's grid.
        network_s: GPU seconds of the network.
        decide_s: Core seconds from logits to labels on the scan's grid.
        write_s: Core seconds to compress and write the label map.
        bytes_in: Read from storage.
        bytes_out: Written to it.
    """

    read_s: float
    resample_s: float
    network_s: float
    decide_s: float
    write_s: float
    bytes_in: float
    bytes_out: float

    @property
    def core_s(self) -> float:
        """Core seconds around the network."""
        return self.read_s + self.resample_s + self.decide_s + self.write_s


def load(network_s: float, path: Path = measure.RESULTS / "services.json") -> Services:
    """The measured services, with an assumed number of GPU seconds for the network."""
    found = json.loads(path.read_text(encoding="utf-8"))["services"]
    return Services(network_s=network_s, **found)


def measured(shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """Medians of processor seconds by stage, one thread, and the scan's bytes."""
    import torch

    from attunet3d.imaging import Segmentation, read_volume, to_network_grid
    from attunet3d.inference import decide, whole_volume
    from benchmarks.speed.around_network import LABELS, null_network
    from benchmarks.speed.clinical_scan import preprocessing, write_clinical_scan

    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {}
    config = preprocessing(crop_to_body=True)

    @contextlib.contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = time.process_time()
        yield
        seconds.setdefault(stage, []).append(time.process_time() - began)

    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        scan, mask = write_clinical_scan(folder, shape), folder / "mask.nii.gz"
        for _ in range(repeats + 1):
            with timed("read_s"):
                volume = read_volume(scan)
            with timed("resample_s"):
                image = to_network_grid(volume, config)
            slabs = list(whole_volume(image.tensor, null_network, divisor=(1, 1, 1)))
            with timed("decide_s"):
                array = decide(iter(slabs), image.grid, volume.grid, sorted(LABELS))
            labels = Segmentation(array, volume.grid, LABELS, volume.geometry)
            with timed("write_s"):
                labels.save(mask)
        sizes = {"bytes_in": scan.stat().st_size, "bytes_out": mask.stat().st_size}
    return {name: statistics.median(found[1:]) for name, found in seconds.items()} | sizes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and save."""
    from benchmarks.speed.clinical_scan import CLINICAL, SMALL

    options = measure.parser(__doc__, repeats=5, small="a small scan").parse_args(argv)
    shape = SMALL if options.small else CLINICAL
    found = measured(shape, options.repeats)
    print(json.dumps(found, indent=1))
    print(measure.save("services", {"scan": shape, "services": found}, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
