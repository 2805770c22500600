"""What the clip-art world's language and generator must offer before any head is trained on them.

Pure functions of arrays; `measure.py` runs the models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ovseg.clipart.scenes import COLORS, tones

Array = NDArray[np.float64]


def explained_share(embeddings: Array, seen: Sequence[int], unseen: Sequence[int]) -> float:
    """Return how much of the unseen names' embeddings lies in the span of the seen ones.

    Args:
        embeddings: ``(N, D)``, a row per name; their mean is taken off first.
        seen: Rows of the seen names.
        unseen: Rows of the unseen names.

    Returns:
        Mean over unseen names of the squared length of the projection over that of the embedding.
    """
    centred = embeddings - embeddings.mean(0)
    _, values, axes = np.linalg.svd(centred[list(seen)], full_matrices=False)
    axes = axes[values > 1e-6 * values[0]]
    rows = centred[list(unseen)]
    return float(np.mean(((rows @ axes.T) ** 2).sum(1) / (rows**2).sum(1)))


def closest_pairs(
    embeddings: Array, names: Sequence[str], count: int = 5
) -> list[tuple[str, str, float]]:
    """Return the pairs of names with the largest cosine of their centred embeddings."""
    centred = embeddings - embeddings.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = unit @ unit.T
    first, second = np.triu_indices(len(names), 1)
    order = np.argsort(-cosine[first, second])[:count]
    return [
        (names[first[i]], names[second[i]], round(float(cosine[first[i], second[i]]), 3))
        for i in order
    ]


def ridge_retrieval(
    text: Array,
    features: Array,
    labels: Sequence[int],
    seen: Sequence[int],
    unseen: Sequence[int],
    penalty: float = 0.1,
) -> float:
    """Return how often a map learnt on seen names finds the right one of the unseen names.

    A ridge regression from a name's embedding to the features inside its masks is fitted on the
    samples of seen names; a sample of an unseen name is given to the unseen name whose predicted
    features have the largest cosine with its own.

    Args:
        text: ``(N, D)``, a row per name.
        features: ``(M, F)``, a row per sample.
        labels: Row of ``text`` of each sample.
        seen: Rows of the seen names.
        unseen: Rows of the unseen names.
        penalty: Of the regression, relative to the mean variance of the embeddings.

    Returns:
        Share in [0, 1] of the samples of unseen names.

    Raises:
        ValueError: If there is no sample of seen, or none of unseen names.
    """
    labels = np.asarray(labels)
    known, new = np.isin(labels, seen), np.isin(labels, unseen)
    if not known.any() or not new.any():
        raise ValueError("there must be samples of seen and of unseen names")
    text = text - text[list(seen)].mean(0)
    centre = features[known].mean(0)
    x, y = text[labels[known]], features[known] - centre
    gram = x.T @ x
    gram += penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    predicted = text[list(unseen)] @ np.linalg.solve(gram, x.T @ y)
    fit = _unit(features[new] - centre) @ _unit(predicted).T
    return float(np.mean(np.asarray(unseen)[fit.argmax(1)] == labels[new]))


def nearest(pool: Array, queries: Array, chunk: int = 64) -> Array:
    """Return the Euclidean distance of each query ``(M, D)`` to the nearest row of the pool."""
    squares = (pool**2).sum(1)
    found = []
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        distances = squares - 2 * part @ pool.T + (part**2).sum(1, keepdims=True)
        found.append(np.sqrt(np.maximum(distances.min(1), 0)))
    return np.concatenate(found)


def color_of(pixels: NDArray[np.uint8]) -> str:
    """Return the name of the colour whose three tones fit an object's pixels ``(P, 3)`` best."""
    values = pixels.astype(float)

    def distance(color: str) -> float:
        table = np.array(tones(color), float)
        return float(np.abs(values[:, None] - table).mean(2).min(1).mean())

    return min(COLORS, key=distance)


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
