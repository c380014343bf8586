"""Diversity of a set of images, from their embeddings; computed in float64.

    vendi_score(embeddings)          number of different images in effect, from 1 to n
    pairwise_distance(embeddings)    mean distance of two images, from 0 to 2
    inception_score(probabilities)   number of classes that are seen with certainty, in effect

An embedding is one row of numbers for each image, such as that of CLIP (`rewards.features`).
"""

import math

from torch import Tensor, linalg, special
from torch.nn import functional


def vendi_score(embeddings: Tensor) -> float:
    """Return the Vendi score (Friedman and Dieng, arXiv 2210.02410) of a set of images.

    It is the exponential of the entropy of the eigenvalues of K / n, where K has the cosines of all pairs: 1
    for n images with the same direction, n for orthogonal ones.

    Args:
        embeddings: (n, d) with n and d of at least 1.

    Returns:
        The score; NaN if an embedding is zero or not finite, so that it has no direction.

    Raises:
        ValueError: the embeddings have another shape.
    """
    directions = _directions("vendi_score", embeddings, least=1)
    if directions is None:
        return math.nan
    n, d = directions.shape
    # both products have the same eigenvalues, apart from zeros
    product = directions @ directions.T if n <= d else directions.T @ directions
    shares = linalg.eigvalsh(product / n).clamp(min=0)  # rounding makes small ones negative
    return math.exp(special.entr(shares).sum().item())


def pairwise_distance(embeddings: Tensor) -> float:
    """Return the mean of 1 - cosine over all pairs of different images.

    Args:
        embeddings: (n, d) with n of at least 2 and d of at least 1.

    Returns:
        The distance; NaN if an embedding is zero or not finite, so that it has no direction.

    Raises:
        ValueError: the embeddings have another shape.
    """
    directions = _directions("pairwise_distance", embeddings, least=2)
    if directions is None:
        return math.nan
    n = len(directions)
    cosines = (directions.sum(dim=0).square().sum().item() - n) / (n * (n - 1))
    return max(0.0, 1 - cosines)  # rounding makes the distance of equal images negative


def inception_score(probabilities: Tensor) -> float:
    """Return the Inception Score (Salimans et al., arXiv 1606.03498) of a set of images, without splits.

    It is the exponential of the mean Kullback-Leibler divergence of an image's class probabilities from
    their mean over all images: 1 if all images have the same ones, the number of classes if the images show
    all classes equally often, each with certainty.

    Args:
        probabilities: (n, classes) with n of at least 1; each row is scaled to a sum of 1.

    Returns:
        The score; NaN if a probability is not finite.

    Raises:
        ValueError: the probabilities have another shape.
    """
    _check_shape("inception_score", "probabilities", probabilities, least=1)
    rows = probabilities.double()
    rows = rows / rows.sum(dim=1, keepdim=True)
    entropies = special.entr(rows).sum(dim=1)
    return math.exp((special.entr(rows.mean(dim=0)).sum() - entropies.mean()).item())


def _directions(function: str, embeddings: Tensor, least: int) -> Tensor | None:
    """Return the embeddings divided by their norms in float64; None if one has no direction."""
    _check_shape(function, "embeddings", embeddings, least)
    rows = embeddings.double()
    if not rows.isfinite().all() or not rows.any(dim=1).all():
        return None
    # the largest value first: squares of tiny values would be zero
    return functional.normalize(rows / rows.abs().amax(dim=1, keepdim=True), dim=1)


def _check_shape(function: str, name: str, values: Tensor, least: int) -> None:
    if values.ndim != 2 or len(values) < least or values.shape[1] < 1:
        raise ValueError(f"{function}: {name} must be (n, d) with n >= {least}, got {tuple(values.shape)}")
