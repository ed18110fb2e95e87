"""Draw docs/explanation/network.svg: levels, skips and gates, widths from the default network."""

from pathlib import Path

from attunet3d import AttentionUNet3D, NetworkConfig

PICTURE = Path(__file__).parent / "explanation" / "network.svg"
WIDE, HIGH, ROW, MARGIN, SPAN = 130, 44, 92, 16, 620


def picture() -> str:
    """The drawing as SVG."""
    channels = NetworkConfig().channels
    network = AttentionUNet3D(channels=channels)
    last = len(channels) - 1
    boxes, arrows = [], []
    for level, width in enumerate(channels):
        y = MARGIN + ROW * level
        x = SPAN / 2 if level == last else MARGIN
        boxes.append(_box(x, y, f"encoder {width}", f"1/{network.strides[level][0]} of the size"))
        if level == last:
            arrows.append(_arrow(x + WIDE, y + HIGH / 2, SPAN + MARGIN, y - ROW + HIGH))
            continue
        boxes.append(_box(SPAN, y, f"decoder {width}", f"head {level + 1}"))
        gated = type(network.skips[last - 1 - level]).__name__ == "GatedSkip"
        arrows.append(
            _arrow(MARGIN + WIDE, y + HIGH / 2, SPAN / 2 if gated else SPAN, y + HIGH / 2)
        )
        if gated:
            boxes.append(_box(SPAN / 2, y, "gates", "x · α(x, g)", "#fbe9d7"))
            arrows.append(_arrow(SPAN / 2 + WIDE, y + HIGH / 2, SPAN, y + HIGH / 2))
        down = (SPAN / 2, y + ROW + HIGH / 2) if level == last - 1 else (MARGIN + WIDE / 2, y + ROW)
        arrows.append(_arrow(MARGIN + WIDE / 2, y + HIGH, *down))
        if level:
            arrows.append(_arrow(SPAN + WIDE / 2, y, SPAN + WIDE / 2, y - ROW + HIGH))
    width, height = SPAN + WIDE + MARGIN, MARGIN + ROW * last + HIGH + MARGIN
    return "\n".join([_HEAD.format(width=width, height=height), *arrows, *boxes, "</svg>\n"])


_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" \
font-family="sans-serif">
<rect width="100%" height="100%" fill="white"/>
<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 8 4 0 8z" fill="#555"/></marker>"""


def _box(x: float, y: float, name: str, words: str, fill: str = "#eef3fa") -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDE}" height="{HIGH}" rx="6" fill="{fill}"'
        f' stroke="#39588a"/><text x="{x + 10:g}" y="{y + 19:g}" font-size="14">{name}</text>'
        f'<text x="{x + 10:g}" y="{y + 36:g}" font-size="11" fill="#333">{words}</text>'
    )


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<path d="M{x:g} {y:g} {to_x:g} {to_y:g}" stroke="#555" stroke-width="1.5" fill="none"'
        ' marker-end="url(#tip)"/>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
