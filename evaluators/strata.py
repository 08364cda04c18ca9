"""Which samples to run first, so that few of them tell how a compressed model does on all.

A compressed model differs from the uncompressed one where that was nearly wrong, or nearly right.
Samples are grouped by how far off that was; groups in which much changes are run first, and each
counts with its share of all samples (stratified sampling, with about Neyman's allocation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of the samples that the uncompressed model gets wrong, the surest first, and of those it
# gets right, the least sure first; and the standard deviation in each of what 77 candidates of
# ResNet-8 on Fashion-MNIST got right. Other numbers make an order less good, but no result wrong.
_WRONG = ((1 / 3, 0.14), (1 / 3, 0.31), (1 / 3, 0.43))
_RIGHT = (
    (1 / 32, 0.44), (1 / 32, 0.38), (1 / 16, 0.31), (1 / 16, 0.23), (1 / 16, 0.16),
    (1 / 8, 0.1), (1 / 8, 0.07), (1 / 4, 0.03), (1 / 4, 0.01),
)  # fmt: skip
_LEAST_DEVIATION = 0.1  # that an order counts on: a surprise in a large group is to be seen early
_PRIOR_SAMPLES = 2.0  # that an expected deviation counts as
_UNKNOWN = 0.5  # deviation where nothing is known


@dataclass(frozen=True, eq=False)
class Strata:
    """Groups of samples, and the order in which samples are run.

    Attributes:
        order: All samples, shape `(n,)`; the first ones hold some of every group.
        groups: Group of each sample, shape `(n,)`.
        deviations: What is expected of each group: the standard deviation, over its samples, of
            a score between 0 and 1.
    """

    order: Tensor
    groups: Tensor
    deviations: tuple[float, ...]

    @classmethod
    def single(cls, n_samples: int, seed: int) -> Strata:
        """Put all samples into one group, in random order."""
        order = torch.randperm(n_samples, generator=torch.Generator().manual_seed(seed))
        return cls(order, torch.zeros(n_samples, dtype=torch.long), (_UNKNOWN,))

    @classmethod
    def by_margin(cls, outputs: Tensor, labels: Tensor, seed: int) -> Strata:
        """Group samples by the lead of the right class before the best other one.

        Args:
            outputs: Scores of the uncompressed model, shape `(n, n_classes)`, 2 classes or more.
            labels: Class indices, shape `(n,)`.
            seed: Fixes the order within groups.

        References:
            Cochran. Sampling techniques. 3rd edition, 1977, sections 5.3 to 5.5.
        """
        right = outputs.gather(1, labels[:, None])[:, 0]
        others = outputs.scatter(1, labels[:, None], -math.inf).amax(dim=1)
        margins = right - others
        ranked = margins.argsort(stable=True)
        n_wrong = int((margins < 0).sum())
        generator = torch.Generator().manual_seed(seed)
        groups = torch.empty(len(outputs), dtype=torch.long)
        turns = torch.empty(len(outputs), dtype=torch.float64)
        deviations: list[float] = []
        for part, rows in ((_WRONG, ranked[:n_wrong]), (_RIGHT, ranked[n_wrong:])):
            shares = torch.tensor([share for share, _ in part], dtype=torch.float64)
            ends = (shares.cumsum(0) * len(rows)).round().long().tolist()
            for start, end, (_, deviation) in zip([0, *ends], ends, part, strict=False):
                if start == end:
                    continue
                members = rows[start:end]
                groups[members] = len(deviations)
                # Every group is run through at a pace of its own; the fastest ends first.
                pace = max(deviation, _LEAST_DEVIATION) * len(members)
                places = torch.randperm(len(members), generator=generator) + 0.5
                turns[members] = places.double() / pace
                deviations.append(deviation)
        return cls(turns.argsort(stable=True), groups, tuple(deviations))

    def estimate(self, scores: Tensor) -> tuple[float, float]:
        """Return the mean score of all samples, and the standard error of that.

        Args:
            scores: Of the first samples in `order`, each between 0 and 1, shape `(n_seen,)`.
        """
        groups = self.groups[self.order[: len(scores)]]
        n_groups = len(self.deviations)
        sizes = torch.bincount(self.groups, minlength=n_groups).double()
        seen = torch.bincount(groups, minlength=n_groups).double()
        sums = torch.bincount(groups, scores.double(), n_groups)
        squares = torch.bincount(groups, scores.double().square(), n_groups)
        # Of a group that none was seen of, what is seen of the others is the best guess.
        means = torch.where(seen > 0, sums / seen.clamp_min(1), scores.double().mean())
        spread = (squares - seen * means.square()).clamp_min(0)
        expected = torch.tensor(self.deviations, dtype=torch.float64).square()
        variances = (spread + _PRIOR_SAMPLES * expected) / (seen + _PRIOR_SAMPLES)
        shares = sizes / sizes.sum()
        left = 1 - seen / sizes  # what all samples of a group were seen of is certain
        error = (shares.square() * left * variances / seen.clamp_min(1)).sum().sqrt()
        return float((shares * means).sum()), float(error)
