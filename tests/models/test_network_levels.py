"""The levels of each network, as its file or its publication says."""

from typing import Any

import pytest

from attunet3d.core import NetworkConfig
from attunet3d.models import NetworkLevel, network_levels, network_without_weights
from attunet3d.models.published.forms import FORMS

PATCH = (64, 48, 32)


def levels(**settings: Any) -> list[NetworkLevel]:
    return network_levels(network_without_weights(NetworkConfig(**settings), 3), PATCH)[0]


@pytest.mark.parametrize("form", FORMS)
def test_levels_of_a_form_halve_and_double_and_every_skip_has_a_gate(form: str) -> None:
    axes, width = FORMS[form].axes, FORMS[form].published_width
    found = levels(form=form)
    assert len(found) == (4 if form == "3d_transposed" else 5)
    for number, level in enumerate(found):
        size = tuple(length >> number for length in PATCH[:axes])
        assert level.encoder == (width << number, *size)
        if number == len(found) - 1:
            assert (level.gate, level.decoder, level.head) == (None, None, None)
            continue
        out = 3 if form == "3d_transposed" and number == 0 else width << number
        assert level.decoder == (out, *size)
        assert level.gate == (1, *size)
        headed = number == 0 and form != "3d_transposed"  # whose last block is the answer
        assert level.head == ((3, *size) if headed else None)


@pytest.mark.parametrize(("gate", "gates"), [("double", 2), ("single", 1), ("none", 0)])
def test_the_main_network_gates_all_skips_but_the_finest(gate: str, gates: int) -> None:
    found = levels(gate=gate, channels=(4, 8, 16), strides=((2, 2, 1), (2, 2, 2)))
    assert [level.encoder for level in found] == [(4, *PATCH), (8, 32, 24, 32), (16, 16, 12, 16)]
    assert [level.gate for level in found] == [None, (gates, 32, 24, 32) if gates else None, None]
    assert [level.head for level in found] == [(3, *PATCH), (3, 32, 24, 32), None]
    single = levels(deep_supervision="none", channels=(4, 8, 16))
    assert [level.head for level in single] == [(3, *PATCH), None, None]
