"""One training step on a CPU: how much faster than the same network in torch as it is.

Usage: python -m benchmarks.speed.train_step [--norm batch|instance|group] [--out FOLDER]
       [--repeats N] [--small]

A step is forward, loss (Dice and cross-entropy), backward, clipping and SGD, of two patches of 96³
voxels by the full network. Ours is `TrainingStep`, with the memory settings of the command
line, in float32 (its default on CPUs) and with `training.precision=bfloat16`. The peer is the same
step written plainly, the same loss and optimiser, in a process that has changed nothing: default
malloc, contiguous, float32.

All start from the same weights. Step by step the losses must agree: in float32 to 1e-3 (layouts
change the order of sums, and steps build on steps), in bfloat16 to 3 %.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import measure

GOAL = 2.5
TOLERANCES = {"eager": 0.0, "float32": 1e-3, "bfloat16": 0.03}
SETTINGS = [
    "training.batch_size=2",
    "training.loss=dice_ce",
    "training.optimiser=sgd",
    "training.learning_rate=0.001",
    "training.schedule=constant",
]


def configuration(size: int, precision: str, norm: str) -> Any:
    from attunet3d.core import Config

    patch = f"training.patch_size=[{size},{size},{size}]"
    chosen = [patch, f"training.precision={precision}", f"network.norm={norm}"]
    return Config().with_overrides([*SETTINGS, *chosen])


def batch(size: int) -> Any:
    """Two noisy patches with a bright ball each."""
    from attunet3d.training import Batch

    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, size)
    label = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 0.4).to(torch.uint8)
    label = label.expand(2, 1, size, size, size).contiguous()
    image = label + 0.5 * torch.randn(label.shape, generator=generator)
    return Batch(image, label, ("a", "b"))


def ours(size: int, precision: str, norm: str) -> Callable[[], list[float]]:
    from attunet3d.training import TrainingStep

    torch.set_num_threads(2)
    step = TrainingStep(configuration(size, precision, norm), 2, torch.device("cpu"))
    patches = [batch(size)]
    losses: list[float] = []

    def work() -> list[float]:
        losses.append(step.update(patches, len(losses))[0])
        return losses

    return work


def peer(size: int, norm: str) -> Callable[[], list[float]]:
    from attunet3d.models import AttentionUNet3D
    from attunet3d.training import build_loss, build_optimiser

    torch.set_num_threads(2)
    config = configuration(size, "float32", norm)
    torch.manual_seed(config.training.seed)
    network = AttentionUNet3D(norm=norm).train()
    criterion = build_loss(config.training, 2)
    optimiser = build_optimiser(network.parameters(), config.training)
    patches = batch(size)
    losses: list[float] = []

    def work() -> list[float]:
        optimiser.zero_grad()
        loss = criterion(network(patches.image), patches.label)
        loss.backward()
        limit = config.training.clip_gradient_norm
        torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
        optimiser.step()
        losses.append(loss.item())
        return losses

    return work


def judged(outcomes: list[measure.Outcome]) -> list[dict[str, Any]]:
    first = outcomes[0]
    found = []
    for outcome in outcomes:
        pairs = zip(outcome.result, first.result, strict=True)
        error = max(abs(got - wanted) / wanted for got, wanted in pairs)
        tolerance = next(value for name, value in TOLERANCES.items() if name in outcome.name)
        assert error <= max(tolerance, 1e-9), f"{outcome.name}: losses part by {error:.1e}"
        ratio = round(first.median / outcome.median, 2)
        found.append({"way": outcome.name, "times_faster": ratio, "loss_error": error})
    return found


def main() -> None:
    parser = measure.parser(__doc__, repeats=5, small="48³ voxels")
    parser.add_argument("--norm", choices=["batch", "instance", "group"], default="batch")
    args = parser.parse_args()
    size = 48 if args.small else 96
    ways = [
        measure.Way("eager", peer, (size, args.norm)),
        measure.Way("attunet3d float32", ours, (size, "float32", args.norm), command_line=True),
        measure.Way("attunet3d bfloat16", ours, (size, "bfloat16", args.norm), command_line=True),
    ]
    outcomes = measure.compare(ways, args.repeats)
    found = judged(outcomes)
    print(f"{measure.table(outcomes)}\n\n{measure.markdown(found)}\ngoal: {GOAL} times faster")
    content = {"size": size, "batch": 2, "norm": args.norm, "goal": GOAL, "against_eager": found}
    name = "train_step" if args.norm == "batch" else f"train_step_{args.norm}"
    print(measure.save(name, content | {"ways": measure.rows(outcomes)}, args.out))


if __name__ == "__main__":
    main()
