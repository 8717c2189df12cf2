"""How well a subject was learned and what else changed, from the features of pictures: rows of length 1, so that products are cosines."""

from torch import Tensor


def fidelity(pictures: Tensor, views: Tensor) -> float:
    """Mean similarity of generated pictures [N, D] to views of the subject that training never saw [M, D]."""
    return float((pictures @ views.T).mean())


def memorisation(pictures: Tensor, training: Tensor) -> float:
    """Mean similarity of generated pictures [N, D] to the nearest training picture [M, D]; 1 is a copy."""
    return float((pictures @ training.T).max(1).values.mean())


def drift(before: Tensor, after: Tensor) -> float:
    """Mean distance, 1 - cosine, of pictures [N, D] of the same prompts and seeds, before and after training."""
    return float((1 - (before * after).sum(1)).mean())


def diversity(groups: Tensor) -> float:
    """Mean distance, 1 - cosine, of pictures of one prompt from each other; `groups` is [prompts, seeds, D]."""
    cosines, n = groups @ groups.transpose(1, 2), groups.shape[1]
    apart = cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)
    return float((1 - apart / (n * (n - 1))).mean())
