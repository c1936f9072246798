"""Synthetic H&E slides, the project's embedded data. They imitate; they are evidence of nothing."""

from medkd.slides.synthetic.drawing import (
    ARTEFACTS,
    SITES,
    Artefact,
    Label,
    SiteName,
    SlideSpec,
    draw_severity,
    draw_slide,
)
from medkd.slides.synthetic.files import CohortSlide, cohort_specs, write_cohort, write_slide

__all__ = [
    "ARTEFACTS",
    "SITES",
    "Artefact",
    "CohortSlide",
    "Label",
    "SiteName",
    "SlideSpec",
    "cohort_specs",
    "draw_severity",
    "draw_slide",
    "write_cohort",
    "write_slide",
]
