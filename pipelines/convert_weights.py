"""Turn weights of the authors' CT network into a model that `infer` takes.

AUTHORS.pth is a state_dict of unet_CT_multi_att_dsv_3D, unet_CT_single_att_dsv_3D or
unet_CT_dsv_3D (github.com/ozan-oktay/Attention-Gated-Networks), saved by torch. The model prepares
scans as preset `oktay2018` does. Nothing in the file is run.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one file of the authors' weights."""
    parser = command_line.parser(__doc__)
    parser.add_argument("authors", type=Path, metavar="AUTHORS.pth")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    corners = "for weights trained with torch 0.3, whose trilinear upsampling aligned corners"
    parser.add_argument("--align-corners", action="store_true", help=corners)
    names = "a class after the background, in order; once for each (default: class 1, class 2, …)"
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help=names)
    arguments = parser.parse_args(argv)

    from attunet3d.models import conversion  # torch comes with it; --help does without

    warnings = conversion.convert_weights(
        arguments.authors,
        arguments.out,
        align_corners=arguments.align_corners,
        names=arguments.label,
    )
    for warning in warnings:
        _log.warning("%s", warning)
    print(f"{arguments.out}: a model for infer, package and train", file=sys.stderr)
    return 0
