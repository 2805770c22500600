"""The vector parts that all nouns share: polygons in the square [-1, 1] x [-1, 1], y down."""

from __future__ import annotations

import numpy as np
from numpy import cos, pi, sin


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def _ellipse(n: int = 28, start: float = 0.0, end: float = 2 * pi) -> np.ndarray:
    t = np.linspace(start, end, n, endpoint=end - start < 2 * pi)
    return np.stack([cos(t), sin(t)], axis=1)


def _wave(lobes: int, inner: float, n: int = 60, power: float = 1.0) -> np.ndarray:
    t = np.linspace(0, 2 * pi, n, endpoint=False)
    r = inner + (1 - inner) * np.abs(cos(lobes * t / 2)) ** power
    return np.stack([r * cos(t), r * sin(t)], axis=1)


def _spikes(points: int, inner: float) -> np.ndarray:
    t = np.linspace(0, 2 * pi, 2 * points, endpoint=False) - pi / 2
    r = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([r * cos(t), r * sin(t)], axis=1)


def _rounded(corner: float = 0.45) -> np.ndarray:
    arc = _ellipse(6, 0, pi / 2) * corner
    inset = 1 - corner
    turns = [(1, 1, arc), (-1, 1, arc[::-1]), (-1, -1, arc), (1, -1, arc[::-1])]
    return np.concatenate([(a + inset) * np.array([x, y]) for x, y, a in turns])


def _crescent() -> np.ndarray:
    outer = _ellipse(24, 0.35 * pi, 1.65 * pi)
    bite = _ellipse(18, 1.60 * pi, 0.40 * pi) * [0.85, 0.88] + [0.42, 0.0]
    shape = np.concatenate([outer, bite])
    low, high = shape.min(0), shape.max(0)
    return 2 * (shape - low) / (high - low) - 1


SHAPES: dict[str, list[np.ndarray]] = {
    "box": [_polygon((-1, -1), (1, -1), (1, 1), (-1, 1))],
    "slab": [_rounded()],
    "disc": [_ellipse()],
    "ring": [_ellipse(), _ellipse()[::-1] * 0.38],
    "triangle": [_polygon((0, -1), (1, 1), (-1, 1))],
    "cabin": [_polygon((-0.6, -1), (0.6, -1), (1, 1), (-1, 1))],
    "pot": [_polygon((-1, -1), (1, -1), (0.7, 1), (-0.7, 1))],
    "hull": [_polygon((-1, -1), (1, -1), (0.55, 1), (-0.55, 1))],
    "dome": [np.concatenate([_ellipse(20, pi, 2 * pi) * [1, 2] + [0, 1]])],
    "leaf": [np.stack([np.linspace(-1, 1, 12), -cos(np.linspace(-pi / 2, pi / 2, 12))], 1)],
    "fin": [_polygon((1, -1), (1, 1), (-1, 1), (-0.2, -0.2))],
    "crown": [
        _polygon(
            *((-1, 1), (-1, -1), (-0.55, -1), (-0.55, -0.45), (-0.25, -0.45), (-0.25, -1)),
            *((0.25, -1), (0.25, -0.45), (0.55, -0.45), (0.55, -1), (1, -1), (1, 1)),
        )
    ],
    "cloud": [_wave(7, 0.78)],
    "petals": [_wave(6, 0.5, 72)],
    "star": [_spikes(5, 0.48)],
    "rays": [_spikes(9, 0.68)],
    "crescent": [_crescent()],
}
SHAPES["leaf"][0] = np.concatenate([SHAPES["leaf"][0], SHAPES["leaf"][0][::-1] * [1, -1]])


def place(part: list, mirror: bool = False) -> list[np.ndarray]:
    """Return the contours of one part of a noun in the object's frame.

    Args:
        part: ``[shape, x, y, width, height, slot, turn?]`` as in nouns.yaml; turn is in degrees, or
            the word "mirror".
        mirror: Mirror the part left to right inside its own frame.

    Returns:
        Contours, each ``(N, 2)`` float64; a second one is a hole.
    """
    shape, x, y, width, height = part[:5]
    turn = part[6] if len(part) > 6 else 0
    flip = -1.0 if mirror or turn == "mirror" else 1.0
    angle = 0.0 if turn == "mirror" else np.deg2rad(turn)
    rotation = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    scale = np.array([flip * width / 2, height / 2])
    return [(c * scale) @ rotation.T + [x, y] for c in SHAPES[shape]]
