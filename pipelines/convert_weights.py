"""Turn weights of the authors' CT network, or of a published form, into a model for `infer`.

WEIGHTS.pth is a state_dict, saved by torch, of unet_CT_multi_att_dsv_3D, unet_CT_single_att_dsv_3D
or unet_CT_dsv_3D (github.com/ozan-oktay/Attention-Gated-Networks), or of a form such as AttU_Net
(see attunet3d info attunet2d_nearest). Which one it is, its names and shapes tell. Scans are
prepared as by the preset of the network. Nothing in the file is run.

The authors' gates must be of nonlocal_mode "concatenation", their CT setting: one of
"concatenation_debug" or "concatenation_residual" cannot be told from it, and would give other
labels than their code.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one file of weights."""
    parser = command_line.parser(__doc__)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS.pth")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    corners = "for the authors' weights of torch 0.3, whose trilinear upsampling aligned corners"
    parser.add_argument("--align-corners", action="store_true", help=corners)
    names = "a class after the background, in order; once for each (default: class 1, class 2, …)"
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help=names)
    sets = "such as preprocessing.hu_window=-100,300; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=sets)
    arguments = parser.parse_args(argv)

    from attunet3d.models import conversion  # torch comes with it; --help does without

    name, warnings = conversion.convert_weights(
        arguments.weights,
        arguments.out,
        align_corners=arguments.align_corners,
        names=arguments.label,
        settings=arguments.set,
    )
    for warning in warnings:
        _log.warning("%s", warning)
    print(f"{arguments.out}: {name}; a model for infer, package and train", file=sys.stderr)
    return 0
