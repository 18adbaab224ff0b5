"""Measures of diversity over images, as values of single images whose mean is the measure.

So they are averaged, compared and given intervals like any metric. Weights: every stratum counts the same, and within a
stratum every image, as in all means over strata.
"""

from collections.abc import Sequence

import numpy as np

PROMPTS = 16
"""Number of prompts, or a few more, of which further images are drawn."""
IMAGES = 4
"""Images per prompt of the diversity within a prompt: the evaluation's own and further ones."""
DECIMALS = 5
"""To which values are rounded: far below any difference that matters, and records stay small."""


def distances(a_ND: np.ndarray, b_MD: np.ndarray, cosine: bool) -> np.ndarray:
    """Distances [N, M] between features: 1 - cosine similarity, or the root mean square of the difference."""
    a_ND, b_MD = a_ND.astype(np.float64), b_MD.astype(np.float64)
    if cosine:
        return 1 - _unit(a_ND) @ _unit(b_MD).T
    squares = (a_ND**2).mean(1)[:, None] + (b_MD**2).mean(1) - 2 * (a_ND @ b_MD.T) / a_ND.shape[1]
    return np.sqrt(squares.clip(0))  # rounding can leave a square of equal features below 0


def _unit(features_ND: np.ndarray) -> np.ndarray:
    return features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)


def within_prompt(features_PKD: np.ndarray, cosine: bool) -> np.ndarray:
    """Mean distance between the K images of each prompt, [P]; NaN for a prompt with an image without features."""
    found = []
    for features_KD in features_PKD:
        apart = distances(features_KD, features_KD, cosine)
        found.append(apart[np.triu_indices(len(apart), 1)].mean())
    return np.round(found, DECIMALS)


def over_prompts(features_ND: np.ndarray, strata: np.ndarray, prompts: np.ndarray, cosine: bool) -> np.ndarray:
    """Values [N] whose mean over strata is the mean distance between images of different prompts.

    The value of an image is 2 r - U, where r is its own mean distance to the images of other prompts and U the measure.
    A pair concerns two images, so that the spread of r alone would give intervals half as wide as they must be
    (Hoeffding 1948: the variance of a mean over pairs is that of 2 r). NaN for images without features; all are NaN if
    there is only one prompt.
    """
    known = ~np.isnan(features_ND).any(1)
    values = np.full(len(features_ND), np.nan)
    weight = _weights(strata[known])
    other = prompts[known][:, None] != prompts[known]
    if other.any(1).all():
        apart = distances(features_ND[known], features_ND[known], cosine)
        own = (apart * other) @ weight / (other @ weight)
        values[known] = 2 * own - weight @ own
    return np.round(values, DECIMALS)


def surprisal(labels: Sequence[str] | np.ndarray, strata: np.ndarray) -> np.ndarray:
    """-log2 of the frequency of each image's label, [N], corrected; its mean over strata is their entropy in bits.

    The correction (labels - 1) / (2 N ln 2), with the effective number N of images (Miller 1955), removes most of the
    bias of the entropy of observed frequencies, which is too low. With about as many labels as a tenth of the images it
    removes it only in part, so that intervals are then too far below. The intervals have the entropy's spread:
    -log p - H is the influence function of the entropy H. Images labelled "" are left out, as NaN.
    """
    labels = np.asarray(labels)
    values = np.full(len(labels), np.nan)
    known = labels != ""
    weight = _weights(strata[known])
    _, which = np.unique(labels[known], return_inverse=True)
    frequency = np.bincount(which, weight)
    if known.any():
        correction = (len(frequency) - 1) * (weight**2).sum() / (2 * np.log(2))
        values[known] = correction - np.log2(frequency[which])
    return np.round(np.abs(values), DECIMALS)  # not -0 for a single label


def _weights(strata: np.ndarray) -> np.ndarray:
    """Weight of each image: equal sums over strata, equal weights within a stratum, 1 in all."""
    _, which, count = np.unique(strata, return_inverse=True, return_counts=True)
    return 1 / (len(count) * count[which]) if len(count) else np.zeros(0)
