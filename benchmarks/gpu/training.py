"""Sections of the GPU benchmark on training: steps of ours and of peers, the ceiling of ours.

A step here is the same for all networks: forward in bfloat16 by autocast, the preset's loss on the
logits, backward, clipping where the preset clips, the preset's optimiser. Peers get no deep
supervision, which only spares them work. The patch lies on the GPU;
`learning` has the real data.
"""

import torch
from torch import nn

from attunet3d.core import Config, find_config
from attunet3d.models import build_network
from attunet3d.training import build_optimiser
from benchmarks.gpu.convolutions import Convolutions
from benchmarks.gpu.timing import (
    LAYOUTS,
    Result,
    Section,
    Setting,
    kernels,
    milliseconds,
    peak_memory,
    rounded,
    timed,
)

BATCH = 2
QUEUED_STEPS = 10  # between two looks at the clock
LEVELS = "network.strides=[[2,2,2],[2,2,2],[2,2,2],[2,2,2]]"
LARGE = ["training.patch_size=[160,160,96]", f"training.batch_size={BATCH}", LEVELS]
SMALL = [
    "training.patch_size=[16,16,16]",
    f"training.batch_size={BATCH}",
    "network.channels=[4,8,8]",
    "network.strides=[[2,2,2],[2,2,2]]",
]


def preset(name: str, small: bool) -> Config:
    """The preset on the same patches of the same batch: so presets compare."""
    return find_config(name).with_overrides(SMALL if small else LARGE)


def build(network: str, config: Config) -> nn.Module:
    """A network for one channel and two classes, in training mode."""
    channels = config.network.channels
    steps = [2] * (len(channels) - 1)
    if network == "ours":
        return build_network(config.network, 1, 2).train()
    from monai.networks.nets import AttentionUnet, DynUNet

    if network == "AttentionUnet":
        peer: nn.Module = AttentionUnet(3, 1, 2, channels, steps)
    else:
        kernel = [3] * len(channels)
        peer = DynUNet(3, 1, 2, kernel, [1, *steps], steps, filters=channels)
    return peer.train()


class Steps:
    """Training steps of one network on one patch that lies on the device."""

    def __init__(self, name: str, config: Config, setting: Setting) -> None:
        from attunet3d.training import build_loss  # needs MONAI

        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True  # shapes never change
        self.setting, self.training = setting, config.training
        self.limit = config.training.clip_gradient_norm
        self.network = build(name, config).to(setting.device)
        self.criterion = build_loss(config.training, 2)
        self.optimiser = build_optimiser(self.network.parameters(), self.training)
        assert config.training.patch_size is not None
        shape = (BATCH, 1, *config.training.patch_size)
        self.image = torch.randn(shape, device=setting.device)
        self.label = (self.image > 1).to(torch.uint8)

    def lay_out(self, layout: str) -> None:
        """Put network and patch into a memory layout."""
        self.network.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
        # Its state is laid out as the weights are when it is first used.
        self.optimiser = build_optimiser(self.network.parameters(), self.training)
        # A clone: the strides of one channel are both layouts' until they are written anew.
        self.image = self.image.clone(memory_format=LAYOUTS[layout])

    def __call__(self) -> torch.Tensor:
        """One step; the loss, not waited for."""
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.setting.device.type, torch.bfloat16):
            logits = self.network(self.image)
        loss = self.criterion(logits if isinstance(logits, list) else [logits], self.label)
        loss.backward()
        if self.limit:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.limit)
        self.optimiser.step()
        return loss.detach()

    def measured(self) -> Result:
        """Time and memory of a step."""
        batch = 1 if self.setting.small else QUEUED_STEPS
        with peak_memory(self.setting.device) as record:
            record |= milliseconds(timed(self, self.setting, batch=batch, warm=5))
        return record | {"steps_a_second": rounded(1e3 / record["ms"])}


def eager(setting: Setting, config_name: str, network: str) -> Section:
    """Both memory layouts; of ours also the operations that take the time."""
    steps = Steps(network, preset(config_name, setting.small), setting)
    for layout in LAYOUTS:

        def measure(layout: str = layout) -> Result:
            steps.lay_out(layout)
            return steps.measured()

        yield layout, measure
    yield "parameters", lambda: sum(part.numel() for part in steps.network.parameters())
    if network == "ours":
        yield "operations", lambda: kernels(steps, setting.device)


def ceiling(setting: Setting, config_name: str) -> Section:
    """The bare convolutions of one of our steps, forward and backward."""

    def work() -> Result:
        steps = Steps("ours", preset(config_name, setting.small), setting)
        with Convolutions(setting.device) as convolutions:
            steps()
        del steps
        found: Result = convolutions.seconds(setting)
        return found

    yield "convolutions", work
