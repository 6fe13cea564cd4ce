"""What a set of generated faces is worth, as numbers (DESIGN section 5).

Everything here takes tensors of embeddings or images and returns small dataclasses; nothing renders,
generates or opens a weights file. An image on which the detector found no face has an embedding of
zeros: it counts as a failure in every measure and is never dropped.
"""

from idgen.metrics.bootstrap import Interval, bootstrap_means
from idgen.metrics.diversity import expression_spread, pixel_spread, pose_spread
from idgen.metrics.fidelity import laplacian_energy, psnr, sharpness_ratio
from idgen.metrics.identity import (
    PhotoStatistics,
    id_score,
    nearest_people,
    pick_among_lookalikes,
    rank_one,
    similarity_to,
)
from idgen.metrics.verification import (
    TarAtFar,
    equal_error_rate,
    tar_at_far,
    ten_fold_accuracy,
)

__all__ = [
    "Interval",
    "PhotoStatistics",
    "TarAtFar",
    "bootstrap_means",
    "equal_error_rate",
    "expression_spread",
    "id_score",
    "laplacian_energy",
    "nearest_people",
    "pick_among_lookalikes",
    "pixel_spread",
    "pose_spread",
    "psnr",
    "rank_one",
    "sharpness_ratio",
    "similarity_to",
    "tar_at_far",
    "ten_fold_accuracy",
]
