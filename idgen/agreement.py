"""Whether photos that are given as one person's show one person."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from idgen.identity import Identity

# A cosine: of good photos, 99 in 100 of one person lie above, and nine in ten of two people below (the mini recogniser on
# validation people; `python -m benchmarks.disagreement`).
SAME_PERSON = 0.2


def disagreement(identity: Identity) -> str | None:
    """A line for references that seem to show several people, with their cosines; None where they agree.

    Photos are joined by the mean cosine between groups (average linkage), so that two photos of a stranger do not vouch for
    each other; what stays apart at `SAME_PERSON` is another person.
    """
    if len(identity) < 2:
        return None
    cosines = identity.similarity(identity)
    distances = squareform((1 - cosines).clamp(min=0).numpy(), checks=False)
    labels = fcluster(linkage(distances, "average"), 1 - SAME_PERSON, "distance")
    groups = sorted(
        (np.flatnonzero(labels == label) + 1 for label in set(labels)), key=lambda group: (-len(group), group[0])
    )
    if len(groups) == 1:
        return None
    matrix = "; ".join(" ".join(f"{value:.2f}" for value in row) for row in cosines.tolist())
    return f"the references may show different people ({_who_differs(groups)}cosines {matrix})"


def _who_differs(groups: list[np.ndarray]) -> str:
    """Whose photos are fewer, by number; of as many, all groups; nothing where there is only one of each."""
    largest, *others = groups
    if len(largest) > len(others[0]):
        odd = sorted(np.concatenate(others))
        number, out = ("number", "stands out") if len(odd) == 1 else ("numbers", "stand out")
        return f"{number} {', '.join(map(str, odd))} of {sum(map(len, groups))} {out}; "
    if len(largest) == 1:
        return ""
    return f"numbers {' against '.join(', '.join(map(str, group)) for group in groups)}; "
