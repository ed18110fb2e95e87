"""One forward pass of the full network on a CPU: how much faster than the same network as it is.

Usage: python -m benchmarks.speed.forward_pass [--out FOLDER] [--repeats N] [--small]

The peer is the very network, `AttentionUNet3D()` in eval mode, called in a process that has changed
nothing: default malloc, contiguous, float32. Ours are what `make_forward_pass` makes of it, in
processes with the command line's memory settings, as `attunet3d infer` has them; `eager, command
line` shows how much of the gain those settings alone are. The input is a phantom CT of 96³ voxels
of 2 mm.

Every way's logits are held to the peer's in float32, for two sets of weights: random ones with the
statistics of a few forward passes (`random`), and 30 steps of learning where soft tissue lies
(`trained`). Exact means 1e-5 of the largest logit; bfloat16 must choose the same class in 99.9 %.
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attunet3d.imaging import Grid
from attunet3d.inference import make_forward_pass
from attunet3d.models import AttentionUNet3D, memory_layout
from attunet3d.phantoms import make_phantom
from benchmarks import measure

CPU = torch.device("cpu")
EXACT, AGREEMENT = 1e-5, 0.999
STEPS = 30
GOALS = {  # times faster than the peer
    "torch float32": 1.9,
    "torch bfloat16": 3.2,
    "openvino float32": 2.5,
    "openvino bfloat16": 4.5,
}


def phantom(size: int) -> Tensor:
    """The middle of a phantom abdomen, normalised, (1, 1, size, size, size)."""
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -size
    scan, _ = make_phantom(3, grid=Grid((size,) * 3, affine))
    array = torch.from_numpy(np.ascontiguousarray(scan.array)).float()
    return array.clamp(-160, 240).sub(40).div(100)[None, None]


def random_network(image: Tensor) -> AttentionUNet3D:
    torch.manual_seed(0)
    network = AttentionUNet3D().train()
    half = image.shape[-1] // 2
    with torch.no_grad():
        for _ in range(4):
            network(image[..., :half, :half, :half] + 0.1 * torch.randn(1, 1, half, half, half))
    return network.eval()


def trained_network(image: Tensor) -> AttentionUNet3D:
    """30 steps of telling smoothed soft tissue (above 70 HU) from the rest."""
    label = F.avg_pool3d(image, 5, 1, 2)[:, 0].gt(0.3).long()
    torch.manual_seed(0)
    network = AttentionUNet3D().train()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    memory_layout.keep_gradients_dense(network, torch.channels_last_3d)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm3d):
            part.momentum = 0.3  # statistics that keep up with so few steps
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    half = image.shape[-1] // 2
    for _ in range(STEPS):
        x, y, z = (slice(a, a + half) for a in torch.randint(0, half, (3,)).tolist())
        optimiser.zero_grad()
        logits = network(image[:, :, x, y, z])[0]
        F.cross_entropy(logits, label[:, x, y, z]).backward()
        optimiser.step()
    return network.eval()


def peer(folder: Path, weights: str, name: str) -> Callable[[], str]:
    """The network as it is."""
    network, image = load(folder, weights)

    @torch.inference_mode()
    def work() -> str:
        return kept(network(image), folder, f"{weights}_{name}")

    return work


def ours(folder: Path, weights: str, engine: str, dtype: torch.dtype) -> Callable[[], str]:
    network, image = load(folder, weights)
    forward = make_forward_pass(network, CPU, dtype, runtime=engine)
    return lambda: kept(forward(image), folder, f"{weights}_{engine}_{dtype}")


def load(folder: Path, weights: str) -> tuple[AttentionUNet3D, Tensor]:
    torch.set_num_threads(2)
    network = AttentionUNet3D()
    network.load_state_dict(torch.load(folder / f"{weights}.pt"))
    return network.eval(), torch.load(folder / "image.pt")


def kept(logits: Tensor, folder: Path, name: str) -> str:
    """The path of the logits, written by the first call, which is not measured."""
    path = folder / f"{name}.npy"
    if not path.exists():
        np.save(path, logits.numpy())
    return str(path)


def ways(folder: Path, weights: str) -> list[measure.Way]:
    made = [
        measure.Way("eager", peer, (folder, weights, "eager")),
        measure.Way("eager, command line", peer, (folder, weights, "kept"), command_line=True),
    ]
    for name in GOALS:
        engine, precision = name.split()
        if engine == "openvino" and find_spec("openvino") is None:
            print("openvino is not installed: pip install attunet3d[openvino]")
            continue
        arguments = (folder, weights, engine, getattr(torch, precision))
        made.append(measure.Way(name, ours, arguments, command_line=True))
    return made


def judged(outcomes: list[measure.Outcome]) -> list[dict[str, Any]]:
    """Each way against the first: how much faster, how exact."""
    first = outcomes[0]
    wanted = np.load(first.result)
    found = []
    for outcome in outcomes:
        got = np.load(outcome.result)
        error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        same = float((got.argmax(1) == wanted.argmax(1)).mean())
        if "bfloat16" in outcome.name:
            assert same >= AGREEMENT, f"{outcome.name}: the same class in {same:.4%} only"
        else:
            assert error <= EXACT, f"{outcome.name}: logits are off by {error:.1e}"
        found.append(
            {
                "way": outcome.name,
                "times_faster": round(first.median / outcome.median, 2),
                "goal": GOALS.get(outcome.name),
                "relative_error": error,
                "same_class": same,
            }
        )
    return found


def main() -> None:
    small = "48³ voxels, one set of weights"
    args = measure.parser(__doc__, repeats=7, small=small).parse_args()
    size = 48 if args.small else 96
    content: dict[str, Any] = {"size": size}
    makers = {"random": random_network, "trained": trained_network}
    with tempfile.TemporaryDirectory() as name:
        folder, image = Path(name), phantom(size)
        torch.save(image, folder / "image.pt")
        for weights in ["random"] if args.small else makers:
            torch.save(makers[weights](image).state_dict(), folder / f"{weights}.pt")
            # The weights change no time: the trained ones are for the comparison of logits.
            repeats = args.repeats if weights == "random" else 1
            outcomes = measure.compare(ways(folder, weights), repeats)
            found = judged(outcomes)
            print(f"\n{weights} weights\n\n{measure.table(outcomes)}\n\n{measure.markdown(found)}")
            content[weights] = {"ways": measure.rows(outcomes), "against_eager": found}
    print(measure.save("forward_pass", content, args.out))


if __name__ == "__main__":
    main()
