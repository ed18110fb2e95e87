"""A start from another model: its weights copied into a new network, heads by the labels' names.

    new labels     background   tumour   pancreas
                        ▲                    ▲         rows of the heads, by name
    old labels     background   spleen   pancreas

A new label starts as a second background, which is what its voxels were so far (Cermelli et al.
2020, "Modeling the Background"), with its random row added, through which the features learn, and
with a hundredth of background's probability (the prior of Lin et al. 2017, "Focal Loss"). A random
row alone gives the old labels, which were far from background, to the new one. Where the models
have no label in common, all that the old one told apart is background now, and every row is new.
All other entries are copied where name and shape agree.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.build import Network
from attunet3d.models.published.forms import HEADS
from attunet3d.models.published.network import PublishedNetwork
from attunet3d.models.slices import SliceNetwork

PRIOR = 0.01  # of a new label, relative to background


@dataclass(frozen=True)
class Transfer:
    """What a network took from another model and what is new, a line for a person each."""

    taken: str
    new: str
    labels: tuple[str, ...] = ()
    """Those whose heads were taken."""
    entries: tuple[str, ...] = ()
    """Names of those in which nothing is new; heads are new where a label is."""


@torch.no_grad()
def transfer_weights(
    network: Network,
    labels: Mapping[int, str],
    old_state: Mapping[str, Tensor],
    old_labels: Mapping[int, str],
) -> Transfer:
    """Copy into `network` what fits of another network's weights; heads by the names of labels."""
    new_names = [labels[value] for value in sorted(labels)]
    old_names = [old_labels[value] for value in sorted(old_labels)]
    found = {n: old_names.index(name) for n, name in enumerate(new_names) if name in old_names}
    pairs = {0: 0} | found if any(found) else {}  # 0: the background, whatever its name
    mixer = "final.weight" if isinstance(network, AttentionUNet3D) else ""
    heads = head_prefixes(network)
    taken, fresh = list[str](), list[str]()
    state = network.state_dict()
    for name, value in state.items():
        old, is_head = old_state.get(name), name.startswith(heads)
        if is_head and not pairs:
            continue
        if is_head and old is not None:
            counts = len(new_names), len(old_names)
            fits = _copy_classes(value, old, pairs, counts, mixes=name == mixer)
            if fits and name.startswith(heads[-1]) and name.endswith("bias"):
                value[[row for row in range(counts[0]) if row not in pairs]] += math.log(PRIOR)
        else:
            fits = old is not None and old.shape == value.shape
            if fits and old is not None:
                value.copy_(old)
        (taken if fits else fresh).append(name)
    known = [new_names[index] for index in pairs]
    unknown = [name for name in new_names if name not in known]
    return Transfer(
        f"{len(taken)} of {len(state)} entries, heads of {', '.join(known) or 'no label'}",
        "; ".join(_lines(fresh, unknown, "as background's" if pairs else "at random")),
        tuple(known),
        tuple(name for name in taken if not (unknown and name.startswith(heads))),
    )


def head_prefixes(network: Network) -> tuple[str, ...]:
    """Beginnings of the names of entries that have a row per class, those of the logits last."""
    if isinstance(network, AttentionUNet3D):
        return ("heads.", "final.") if isinstance(network.final, nn.Conv3d) else ("heads.",)
    inner: nn.Module = network.network if isinstance(network, SliceNetwork) else network
    prefix = "network." if isinstance(network, SliceNetwork) else ""
    heads = HEADS[type(inner)] if isinstance(inner, PublishedNetwork) else ()
    return tuple(prefix + head for head in heads)


def _copy_classes(
    value: Tensor, old: Tensor, pairs: Mapping[int, int], counts: tuple[int, int], *, mixes: bool
) -> bool:
    """Copy rows of classes; of the layer that mixes also its columns, which are heads × classes."""
    if value.ndim == 0:  # a counter of BatchNorm
        value.copy_(old)
        return True
    sources = [pairs.get(row, 0) for row in range(counts[0])]
    if not mixes:
        if fits := old.shape[1:] == value.shape[1:]:
            fresh = [row for row in range(counts[0]) if row not in pairs and value.ndim > 1]
            random = value[fresh]
            value.copy_(old[sources])
            value[fresh] += random
        return fits
    rows, old_rows = value.view(counts[0], -1, counts[0]), old.reshape(counts[1], -1, counts[1])
    if rows.shape[1] != old_rows.shape[1]:
        return False
    rows.zero_()  # so that a known label's logit is the old one, whatever is new
    for row, source in enumerate(sources):  # class, head, class
        for column, old_column in pairs.items():
            own = row if column == 0 and row not in pairs else column
            rows[row, :, own] = old_rows[source, :, old_column]
    return True


def _lines(fresh: list[str], unknown: list[str], start: str) -> list[str]:
    parts = [f"heads of {', '.join(unknown)}, which start {start}"] if unknown else []
    if fresh:
        shown = ", ".join(fresh[:3]) + (" …" if len(fresh) > 3 else "")
        parts += [f"{len(fresh)} entries without a counterpart of their shape ({shown})"]
    return parts
