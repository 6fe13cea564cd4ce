"""Figures of five face landmarks: how far they lie from where they should, and the pose of the head.

Landmarks are (n, 5, 2) pixels (x, y): left eye as seen, right eye, nose tip, left and right mouth corner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A head's five points in units of the distance between its eyes, x right, y down, z away from the viewer. x and y are the
# ArcFace template's (a mean frontal face); the depths are those of a mean head.
HEAD = torch.tensor(
    [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.571, -0.55], [-0.414, 1.154, -0.1], [0.414, 1.154, -0.1]],
    dtype=torch.float64,
)


def landmark_distance(landmarks: Tensor, targets: Tensor) -> Tensor:
    """(n,): mean distance of the five points to their targets, in units of the targets' distance between the eyes.

    The normalised mean error of face alignment (300-W; Sagonas et al. 2013), with the pupils as the unit.
    """
    if landmarks.shape != targets.shape or landmarks.shape[1:] != (5, 2):
        raise ValueError(f"needs (n, 5, 2) twice, got {tuple(landmarks.shape)} and {tuple(targets.shape)}")
    points, wanted = landmarks.double(), targets.double()
    between_eyes = (wanted[:, 1] - wanted[:, 0]).norm(dim=-1).clamp_min(1e-9)
    return (points - wanted).norm(dim=-1).mean(1) / between_eyes


def head_pose(landmarks: Tensor) -> Tensor:
    """(n, 3) degrees: yaw, pitch, roll of the rotation under which a mean head's points look like these (weak perspective).

    Yaw is positive when the head turns to the right of the picture, pitch when it looks up, roll when it tilts
    clockwise as seen. Five points of a mean head tell a person's pose to a few degrees: good for a spread, not for one angle.
    """
    points = landmarks.double()
    model = HEAD - HEAD.mean(0)
    centred = points - points.mean(1, keepdim=True)  # (n, 5, 2)
    # The best affine camera, then the nearest scaled pair of orthonormal rows to it.
    camera = torch.einsum("nkc,dk->ncd", centred, torch.linalg.pinv(model))  # (n, 2, 3)
    left, _, right = torch.linalg.svd(camera, full_matrices=False)
    rows = left @ right  # (n, 2, 3)
    rotation = torch.cat([rows, torch.linalg.cross(rows[:, 0], rows[:, 1])[:, None]], 1)  # (n, 3, 3)
    # R = Ry Rx Rz: the face looks along minus its third column, and the second row holds the roll.
    yaw = torch.atan2(-rotation[:, 0, 2], rotation[:, 2, 2])
    pitch = torch.asin(rotation[:, 1, 2].clamp(-1, 1))
    roll = torch.atan2(rotation[:, 1, 0], rotation[:, 1, 1])
    return torch.stack([yaw, pitch, roll], 1) * (180 / math.pi)
