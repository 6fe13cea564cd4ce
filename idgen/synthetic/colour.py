"""Named colours, and the two directions of the sRGB curve. Colours here are sRGB in [0, 1] as one sees them."""

from __future__ import annotations

import numpy as np

Colour = tuple[float, float, float]

HAIRS: dict[str, Colour] = {
    "black": (0.105, 0.095, 0.09),
    "dark brown": (0.21, 0.15, 0.11),
    "brown": (0.36, 0.25, 0.16),
    "red": (0.54, 0.25, 0.12),
    "blond": (0.69, 0.53, 0.32),
    "light blond": (0.84, 0.72, 0.50),
    "grey": (0.52, 0.51, 0.50),
    "white": (0.83, 0.82, 0.80),
}
EYES: dict[str, Colour] = {
    "dark brown": (0.17, 0.095, 0.055),
    "brown": (0.34, 0.20, 0.10),
    "hazel": (0.47, 0.36, 0.18),
    "green": (0.36, 0.46, 0.28),
    "blue": (0.36, 0.52, 0.68),
    "grey": (0.50, 0.55, 0.58),
}
CLOTHES: dict[str, Colour] = {
    "black": (0.10, 0.10, 0.11),
    "white": (0.86, 0.86, 0.84),
    "grey": (0.46, 0.46, 0.48),
    "red": (0.66, 0.14, 0.14),
    "orange": (0.84, 0.45, 0.16),
    "yellow": (0.86, 0.74, 0.26),
    "green": (0.20, 0.46, 0.26),
    "blue": (0.20, 0.34, 0.66),
    "purple": (0.42, 0.24, 0.54),
    "pink": (0.86, 0.54, 0.62),
    "brown": (0.40, 0.28, 0.19),
}


def to_linear(colour: np.ndarray | Colour) -> np.ndarray:
    """sRGB in [0, 1] to linear light."""
    c = np.asarray(colour, np.float64)
    return np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
