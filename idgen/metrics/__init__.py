"""What a set of generated faces is worth, as numbers (docs/evaluate.md).

Everything here takes tensors of embeddings or images and returns small dataclasses; nothing renders,
generates or opens a weights file. An image on which the detector found no face has an embedding of
zeros: it counts as a failure in every measure and is never dropped.
"""

from idgen.metrics.bootstrap import Interval, bootstrap_means
from idgen.metrics.diversity import expression_spread, light_of, light_spread, pixel_spread, pose_spread
from idgen.metrics.fidelity import laplacian_energy, psnr, sharpness_ratio, ssim
from idgen.metrics.frechet import (
    KernelDistance,
    frechet_distance,
    frechet_of_moments,
    kernel_distance,
    smallest_sample,
)
from idgen.metrics.identity import (
    PhotoStatistics,
    id_score,
    nearest_people,
    pick_among_lookalikes,
    rank_one,
    similarity_to,
)
from idgen.metrics.landmarks import head_pose, landmark_distance
from idgen.metrics.pairs import (
    PairAccuracy,
    RocCurve,
    pair_accuracy,
    pool_templates,
    roc_curve,
    tar_at_nearest_far,
)
from idgen.metrics.verification import (
    TarAtFar,
    equal_error_rate,
    tar_at_far,
    tar_curve,
    ten_fold_accuracy,
)

__all__ = [
    "Interval",
    "KernelDistance",
    "PairAccuracy",
    "PhotoStatistics",
    "RocCurve",
    "TarAtFar",
    "bootstrap_means",
    "equal_error_rate",
    "expression_spread",
    "frechet_distance",
    "frechet_of_moments",
    "head_pose",
    "id_score",
    "kernel_distance",
    "landmark_distance",
    "laplacian_energy",
    "light_of",
    "light_spread",
    "nearest_people",
    "pair_accuracy",
    "pick_among_lookalikes",
    "pixel_spread",
    "pool_templates",
    "pose_spread",
    "psnr",
    "rank_one",
    "roc_curve",
    "sharpness_ratio",
    "similarity_to",
    "smallest_sample",
    "ssim",
    "tar_at_far",
    "tar_at_nearest_far",
    "tar_curve",
    "ten_fold_accuracy",
]
