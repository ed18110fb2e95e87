"""A random abdomen made of shapes, with a pancreas whose volume is known exactly.

World axes are RAS millimetres: the liver lies at positive x (the patient's right), the spine at
negative y, the head at positive z. The origin lies in front of the upper lumbar spine. Tissue
values are those of the portal venous phase. Nothing here is taken from a patient: positions and
sizes are round numbers from general anatomy.
"""

from dataclasses import replace

import numpy as np

from attunet3d.core import Floats
from attunet3d.phantoms import organs, pathology, skeleton
from attunet3d.phantoms.cohort import EASY, Cohort, happens
from attunet3d.phantoms.phases import draw_dose, in_phase
from attunet3d.phantoms.shapes import Torso, Tube, Warp
from attunet3d.phantoms.tissue import Anatomy, PatientSampler, Tissue

PANCREAS_ML = (60.0, 110.0)


def random_anatomy(seed: int, cohort: Cohort = EASY) -> Anatomy:
    """Return the patient of this seed: one build in every cohort, healthy in `EASY`.

    Example:
        >>> 60 <= random_anatomy(3).pancreas_ml <= 110
        True
        >>> random_anatomy(3).pancreas_ml == random_anatomy(3).pancreas_ml
        True
    """
    healthy = healthy_anatomy(seed)
    return healthy if cohort == EASY else _patient(healthy, cohort, seed)


def healthy_anatomy(seed: int, pancreas: Tube | None = None, torso: Torso | None = None) -> Anatomy:
    """Return a healthy patient in the venous phase.

    Args:
        seed: Same seed, same patient.
        pancreas: Build the patient around this one instead of a random one.
        torso: Use this outline of the body instead of a random one.
    """
    sample = PatientSampler(seed)
    own = Torso(168 * sample.build[0], 122 * sample.build[1], sample.uniform(0.5, 0.7))
    torso = torso or own
    fat = sample.uniform(9, 26)
    muscle = sample.uniform(9, 13)
    wall = ((0.0, 10.0), (2.0, -105.0), (fat, 55.0), (fat + muscle, sample.uniform(-105, -80)))
    hu = sample.uniform(85, 115)  # of the pancreas, to which its neighbours are compared
    pancreas = pancreas or _pancreas(sample)
    around = (
        *skeleton.chest(sample, torso, fat + muscle),
        *skeleton.spine(sample, torso),
        *organs.kidneys(sample),
        *organs.solid_organs(sample, hu),
        *organs.bowel(sample, hu),
        *organs.adjacent_loops(sample, pancreas, hu),
        *organs.stomach(sample, hu),
        *organs.duodenum(sample, pancreas, hu),
        *organs.vessels(sample, pancreas, hu),
    )
    warp = Warp(_waves(sample))
    return Anatomy(
        torso=torso,
        wall=wall,
        tissues=(*around, Tissue("pancreas", pancreas, hu)),
        table=skeleton.table(torso),
        warp=warp,
        pancreas=pancreas,
    )


def _patient(healthy: Anatomy, cohort: Cohort, seed: int) -> Anatomy:
    """Give a healthy patient the disease, surgery and contrast phase that the cohort draws."""
    rng = np.random.default_rng([seed, 5])
    disease = pathology.draw_disease(healthy.pancreas, cohort, rng)
    *around, pancreas = healthy.tissues
    hu = pancreas.hu + disease.pancreas_offset_hu
    tissues = [*pathology.remaining(around, disease.gone), Tissue("pancreas", disease.pancreas, hu)]
    if disease.tumour is not None:
        tissues.append(Tissue("tumour", disease.tumour, hu - rng.uniform(-10, 45)))
    phase = cohort.draw_phase(rng)
    if happens(rng, cohort.ascites_share):
        healthy = healthy.with_cavity(float(rng.uniform(0, 20)))
    return replace(
        healthy,
        tissues=in_phase(tissues, phase, draw_dose(phase, rng)),
        pancreas=disease.pancreas,
        tumour=disease.tumour if cohort.tumour_label else None,
    )


def _waves(sample: PatientSampler) -> Floats:
    # Long waves bend whole organs; short ones give outlines their lobes.
    waves = np.zeros((3, 3, 4))
    for row, (amplitude, shortest, longest) in enumerate(
        [(4, 110, 180), (1.6, 45, 70), (0.9, 17, 24)]
    ):
        for axis in range(3):
            length, angle = sample.uniform(shortest, longest), sample.uniform(0, 2 * np.pi)
            number = 2 * np.pi / length * np.array([np.cos(angle), np.sin(angle)])
            height = amplitude * sample.uniform(0.5, 1)
            waves[axis, row] = height, *number, sample.uniform(0, 6.28)
    return waves


def _pancreas(sample: PatientSampler) -> Tube:
    """The pancreas: head right and low, body arched over the spine, tail up towards the spleen."""
    arch, climb = sample.uniform(-5, 6), sample.uniform(-10, 10)
    knots = sample.jittered(
        [
            (52, 4, -24),
            (38, 4, -20),
            (24, 10, -10),
            (12, 20 + arch / 2, 0),
            (-10, 25 + arch, 10 + climb / 3),
            (-38, 10 + arch / 2, 18 + climb / 2),
            (-66, -16, 26 + climb),
            (-86, -32, 30 + climb),
        ],
        2.5,
    )
    radii = np.array(
        [(11, 17), (13, 24), (11, 18), (7.5, 10.5), (9, 12), (9, 12), (9, 11.5), (8, 9.5)]
    ) * sample.rng.uniform(0.9, 1.1, (8, 1))
    tube = Tube.through(0, knots, radii, cap_mm=12)
    return tube.scaled(float(np.sqrt(sample.uniform(*PANCREAS_ML) / tube.volume_ml)))
