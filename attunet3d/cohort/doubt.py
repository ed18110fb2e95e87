"""How far each label of a prediction can be believed: what was measured, and one word.

Trust is a guess at the Dice coefficient: a weighted sum of

    agreement    expected Dice (see `expected_dice`), or the Dice between members if there are
                 several and they agree less
    scattered    share of the voxels that lie outside the largest connected part
    cut          1 where the label reaches the border of the scan
    outside      1 where its volume or mean HU was never seen in training

below `wrong` the word is "wrong?", below `look` it is "look", else "ok". The weights and the limits
are fitted on out-of-fold predictions (see `evaluation`) and stored with the model, among its notes.
An empty label has no Dice to guess at: it is "ok" where training had such cases, else "look".
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from attunet3d.imaging import LabelMeasures

TOLERANCE = 0.1  # of a range seen in training: a little beyond it is not yet unusual

Ranges = Mapping[str, Mapping[str, Sequence[float]]]
"""By label name, the range of "ml" and of "hu" (the mean) in training."""


@dataclass(frozen=True, kw_only=True)
class DoubtRule:
    """Weights of the features, and the limits of trust; the defaults are not fitted."""

    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "constant": 0.0,
            "agreement": 1.0,
            "scattered": -0.3,
            "cut": -0.1,
            "outside": -0.2,
        }
    )
    wrong: float = 0.5
    look: float = 0.75

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> "DoubtRule":
        """The rule among a model's notes (`doubt`), or the default."""
        values = notes.get("doubt")
        if not isinstance(values, dict):
            return cls()
        weights = {str(name): float(value) for name, value in values["weights"].items()}
        return cls(weights=weights, wrong=float(values["wrong"]), look=float(values["look"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model's notes."""
        return asdict(self)

    def trust(self, entry: Mapping[str, Any]) -> float:
        """The guess at the Dice coefficient of a label; see `doubt_of`."""
        return sum(
            self.weights.get(name, 0.0) * value for name, value in doubt_features(entry).items()
        )

    def word(self, entry: Mapping[str, Any]) -> str:
        """One word about a label: ok, look or wrong?."""
        if not entry["voxels"]:
            return "ok" if entry.get("outside_training") is False else "look"
        trust = self.trust(entry)
        return "wrong?" if trust < self.wrong else "look" if trust < self.look else "ok"


def doubt_of(
    measures: Mapping[str, LabelMeasures],
    expected: Mapping[str, float],
    agreement: Mapping[str, float | None],
    rule: DoubtRule,
    ranges: Ranges,
) -> dict[str, dict[str, Any]]:
    """What makes each label of a case doubtful, for its sidecar.

    Args:
        measures: Of the label map.
        expected: Dice expected of each label from its probabilities.
        agreement: Dice between members for each label, if there are several.
        rule: Gives the word.
        ranges: Seen in training; empty where nothing is known.

    Example:
        >>> found = {"liver": LabelMeasures(value=1, voxels=9, ml=9.0, pieces=1, largest_piece=1)}
        >>> doubt = doubt_of(found, {"liver": 0.6}, {}, DoubtRule(), {"liver": {"ml": (7, 8)}})
        >>> doubt["liver"]["outside_training"], doubt["liver"]["word"]
        (True, 'wrong?')
    """
    doubts = {}
    for name, label in measures.items():
        entry: dict[str, Any] = {
            "voxels": label.voxels,
            "expected_dice": _rounded(expected.get(name)),
            "member_dice": _rounded(agreement.get(name)),
            "pieces": label.pieces,
            "largest_piece": label.largest_piece,
            "touches_border": label.touches_border,
            "outside_training": outside_ranges(label, ranges.get(name)),
        }
        doubts[name] = {**entry, "trust": _rounded(rule.trust(entry)), "word": rule.word(entry)}
        del doubts[name]["voxels"]  # the sidecar has them already
    return doubts


def doubt_features(entry: Mapping[str, Any]) -> dict[str, float]:
    """What trust is a weighted sum of, by name."""
    expected, members = entry.get("expected_dice"), entry.get("member_dice")
    return {
        "constant": 1.0,
        "agreement": min(expected or 0.0, 1.0 if members is None else members),
        "scattered": 1.0 - entry["largest_piece"],
        "cut": float(entry["touches_border"]),
        "outside": float(bool(entry.get("outside_training"))),
    }


def outside_ranges(
    label: LabelMeasures, ranges: Mapping[str, Sequence[float]] | None
) -> bool | None:
    """Whether the volume or the mean HU lies clearly beyond its range; None: no range is known."""
    if not ranges:
        return None
    beyond = []
    for name, value in (("ml", label.ml), ("hu", label.hu_mean)):
        if name in ranges and value is not None:
            low, high = ranges[name]
            margin = TOLERANCE * (high - low)
            lowest = low if name == "ml" and low == 0 else low - margin
            beyond.append(not lowest <= value <= high + margin)
    return any(beyond) if beyond else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
