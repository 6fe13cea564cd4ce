"""Whether photos that are given as one person's show one person, and nobody else who could be meant."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from idgen.errors import IdgenError
from idgen.identity import Identity

# A cosine: of good photos, 99 in 100 of one person lie above, and nine in ten of two people below (the mini recogniser on
# validation people; `python -m benchmarks.disagreement`).
SAME_PERSON = 0.2
RIVAL = 0.5  # a share of the area of the face that is taken, from which on another one may be meant


def doubts(identity: Identity, *, strict: bool = False) -> list[str]:
    """What should be said of references before anything is made of them, a line each.

    Raises:
        IdgenError: there is a doubt, with `strict`.
    """
    lines = [line for line in (crowd(identity), disagreement(identity)) if line]
    if lines and strict:
        raise IdgenError(f"{'; '.join(lines)}; leave out or crop what does not belong, or go without --strict")
    return lines


def crowd(identity: Identity) -> str | None:
    """A line for references that show another face nearly as large as the one that was taken; None where none does."""
    if identity.rivals is None:
        return None
    shared = np.flatnonzero(identity.rivals.numpy() >= RIVAL) + 1
    if not len(shared):
        return None
    verb, it = ("show", "them") if len(shared) > 1 else ("shows", "it")
    which = (
        f"number {', '.join(map(str, shared))} of {len(identity)} references" if len(identity) > 1 else "the reference"
    )
    return f"{which} {verb} another face nearly as large as the one that is taken: crop {it} to the person who is meant"


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
