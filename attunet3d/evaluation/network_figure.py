"""A network drawn as the paper draws it: encoder left, decoder right, gates on the skips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from attunet3d.core import Config
from attunet3d.evaluation import figures
from attunet3d.models import (
    USUAL_PATCH,
    NetworkLevel,
    SliceNetwork,
    network_levels,
    network_without_weights,
)

WIDE, HIGH, ROW = 2.5, 0.6, 1.2  # a box, and a level
DECODER, HEAD, OUTPUT, GATE = 9.6, 13.1, 16.1, 2.5  # of the finest level; a gate before a decoder
BLOCK, GATES, HEADS, PLAIN = "#dbe7f5", "#fbd9a5", "#dff0d8", "#f2f2f2"
ARROWS = {  # the colour and style of each kind
    "skip connection": ("#555555", "-"),
    "downsampling": ("#b3262e", "-"),
    "upsampling": ("#1f5f8b", "-"),
    "gating signal": ("#c76b00", "--"),
    "head": ("#3c763d", "-"),
}
Point = tuple[float, float]


def save_network_picture(config: Config, classes: int | None, path: Path) -> None:
    """Draw the network that a configuration makes, for one training patch.

    Args:
        config: With or without gaps.
        classes: Of the network, background included; None: 2, as `config_summary` takes.
        path: `….png` or `….svg`.

    Raises:
        WriteError: The file cannot be written, or its name ends in something else.
    """
    classes = classes or 2
    network = network_without_weights(config.network, classes)
    patch = config.training.patch_size or config.inference.window or USUAL_PATCH
    seen, size = "1", patch[:2] if isinstance(network, SliceNetwork) else patch
    if isinstance(network, SliceNetwork):
        seen = f"{network.slices} slice{'s' * (network.slices > 1)}"
    count = sum(parameter.numel() for parameter in network.parameters())
    levels, upsampling = network_levels(network, patch)
    figure = network_figure(
        levels,
        upsampling,
        title=f"{config.network.form}: {count:,} parameters, {classes} classes",
        seen=f"{seen} · {'×'.join(map(str, size))}",
        fused=config.network.form == "attention_unet"
        and config.network.deep_supervision == "fused",
    )
    figures.save(figure, path)


def network_figure(
    levels: Sequence[NetworkLevel], upsampling: str, *, title: str, seen: str, fused: bool = False
) -> Figure:
    """Boxes of channels and sizes for each level, joined by what leads from one to the next.

    Args:
        levels: Finest first.
        upsampling: In words.
        title: The line above all.
        seen: The input, in words.
        fused: Whether the heads are upsampled and mixed into one output.
    """
    last = len(levels) - 1
    figure = Figure(figsize=(14, 2.4 + 0.95 * last), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-WIDE / 2 - 0.1, OUTPUT + WIDE / 2 + 0.1)
    axes.set_ylim(-ROW * last - HIGH, ROW + HIGH)
    _box(axes, (0, ROW), f"input\n{seen}", PLAIN)
    _arrow(axes, "skip connection", (0, ROW - HIGH / 2), (0, HIGH / 2))
    for number, level in enumerate(levels):
        _draw_level(axes, number, level, last)
    _heading(axes, 0.5, "encoder (channels · size)")
    _heading(axes, DECODER - WIDE / 2, "decoder")
    _draw_heads(axes, levels, fused=fused)
    names = [upsampling if kind == "upsampling" else kind for kind in ARROWS]
    styles = zip(names, ARROWS.values(), strict=True)
    handles = [Line2D([], [], color=c, linestyle=style, label=name) for name, (c, style) in styles]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    figure.suptitle(title, fontsize=12)
    return figure


def _encoder(level: int, last: int) -> Point:
    return (DECODER / 2 if level == last else _step(last) * level), -ROW * level


def _decoder(level: int, last: int) -> Point:
    return _encoder(last, last) if level == last else (DECODER - _step(last) * level, -ROW * level)


def _step(last: int) -> float:
    return min(0.6, 2.4 / last)  # of a level inwards: room is left for the deepest gate


def _draw_level(axes: Axes, number: int, level: NetworkLevel, last: int) -> None:
    """The encoder's box, the way down to it, and, but for the centre, all that is on the right."""
    (left, y), (right, _) = _encoder(number, last), _decoder(number, last)
    _box(axes, (left, y), _words(level.encoder), BLOCK)
    if number:
        start, _ = _encoder(number - 1, last)
        end = (left - WIDE / 2, y) if number == last else (start, y + HIGH / 2)
        _arrow(axes, "downsampling", (start, y + ROW - HIGH / 2), end)
    if level.decoder is None:
        return
    _box(axes, (right, y), _words(level.decoder), BLOCK)
    below, _ = _decoder(number + 1, last)
    lower = (below + WIDE / 2, y - ROW) if number + 1 == last else (below, y - ROW + HIGH / 2)
    _arrow(axes, "upsampling", lower, (below if number + 1 < last else right, y - HIGH / 2))
    if level.gate is None:
        _arrow(axes, "skip connection", (left + WIDE / 2, y), (right - WIDE / 2, y))
        return
    gate = right - GATE
    axes.add_patch(Circle((gate, y), 0.27, facecolor=GATES, edgecolor="#c76b00", zorder=3))
    axes.text(gate, y, "α", ha="center", va="center", fontsize=12, zorder=4)
    gates, size = level.gate[0], "×".join(map(str, level.gate[1:]))
    words = f"{gates} gate{'s' * (gates > 1)}, α of {size}"
    axes.text(gate - 0.35, y + 0.1, words, ha="right", va="bottom", fontsize=8)
    _arrow(axes, "skip connection", (left + WIDE / 2, y), (gate - 0.27, y))
    _arrow(axes, "skip connection", (gate + 0.27, y), (right - WIDE / 2, y))
    _arrow(
        axes,
        "gating signal",
        (max(gate, below - WIDE / 2 + 0.2), y - ROW + HIGH / 2),
        (gate, y - 0.27),
    )


def _draw_heads(axes: Axes, levels: Sequence[NetworkLevel], *, fused: bool) -> None:
    """A head for each level that has one, and the output."""
    last, heads = len(levels) - 1, {n: level.head for n, level in enumerate(levels) if level.head}
    for number, shape in heads.items():
        right, y = _decoder(number, last)
        _box(axes, (HEAD, y), _words(shape), HEADS)
        _arrow(axes, "head", (right + WIDE / 2, y), (HEAD - WIDE / 2, y))
    words = "output"
    if len(heads) > 1:
        words += ", all heads mixed" if fused else "; a loss per head"
        _heading(axes, HEAD - WIDE / 2, "deep supervision")
    _box(axes, (OUTPUT, 0), f"{words}\n{_words(levels[0].head or levels[0].decoder or ())}", PLAIN)
    start = HEAD if heads else DECODER
    _arrow(axes, "head", (start + WIDE / 2, 0), (OUTPUT - WIDE / 2, 0))
    for number in list(heads)[1:] if fused else ():
        y = -ROW * number
        axes.plot([HEAD + WIDE / 2, OUTPUT], [y, y], color=ARROWS["upsampling"][0], zorder=1)
        _arrow(axes, "upsampling", (OUTPUT, y), (OUTPUT, -HIGH / 2))


def _heading(axes: Axes, x: float, words: str) -> None:
    axes.text(x, HIGH, words, fontsize=10, style="italic", va="center")


def _box(axes: Axes, centre: Point, words: str, colour: str) -> None:
    x, y = centre
    corner = x - WIDE / 2 + 0.06, y - HIGH / 2 + 0.06
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0.06",
        "facecolor": colour,
        "edgecolor": "#39588a",
        "zorder": 2,
    }
    axes.add_patch(FancyBboxPatch(corner, WIDE - 0.12, HIGH - 0.12, **style))
    axes.text(x, y, words, ha="center", va="center", fontsize=9, zorder=3)


def _arrow(axes: Axes, kind: str, start: Point, end: Point) -> None:
    colour, style = ARROWS[kind]
    options: dict[str, Any] = {
        "arrowstyle": "-|>",
        "mutation_scale": 11,
        "shrinkA": 0,
        "shrinkB": 0,
        "zorder": 1.5,
    }
    axes.add_patch(FancyArrowPatch(start, end, color=colour, linestyle=style, **options))


def _words(shape: Sequence[int]) -> str:
    """Channels and size.

    Example:
        >>> _words((16, 96, 96, 32))
        '16 · 96×96×32'
    """
    channels, *size = shape
    return f"{channels} · {'×'.join(map(str, size))}"
