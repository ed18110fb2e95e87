"""Label names that say left or right."""

import pytest

from attunet3d.datasets import labels_with_side


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left kidney", "right kidney"),
        ("kidney_left", "kidney_right"),
        ("Kidney (Left)", "Kidney (Right)"),
        ("KIDNEY-L", "KIDNEY-R"),
        ("KidneyLeft", "KidneyRight"),
        ("LKidney", "RKidney"),
        ("l.kidney", "r.kidney"),
        ("leftkidney", "rightkidney"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
        ("linke Niere", "rechte Niere"),
        ("linker Lungenflügel", "rechter Lungenflügel"),
        ("Niere links", "Niere rechts"),
        ("rein gauche", "rein droit"),
        ("glande surrénale gauche", "glande surrénale droite"),
        ("riñón izquierdo", "riñón derecho"),
        ("rene sinistro", "rene destro"),
        ("rib_left_7", "rib_right_7"),
    ],
)
def test_names_with_a_side_are_found(left: str, right: str) -> None:
    """Whatever the language, the place of the side and the spelling."""
    assert labels_with_side({1: right, 2: "liver", 5: left}) == (1, 5)


@pytest.mark.parametrize(
    "name",
    ["vertebra L1", "vertebrae_L5", "bright lesion", "liver", "renal vein", "T1 L2"],
)
def test_other_names_have_no_side(name: str) -> None:
    """Letters within words and numbered vertebrae say nothing about the side."""
    assert labels_with_side({1: name}) == ()


def test_a_side_without_its_partner_is_found() -> None:
    """A single kidney has a side all the same."""
    labels = {1: "rib_left_1", 2: "rib_left_2", 3: "rib_right_2", 4: "kidney_left"}
    assert labels_with_side(labels) == (1, 2, 3, 4)
