"""Who judges: never a recogniser that had a part in making the pictures, unless asked for, and then it is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idgen.errors import IdgenError
from idgen.evaluation.fingerprints import recogniser_fingerprint
from idgen.faces.torch_backend import FAMILY
from idgen.identity import recogniser_name

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder

# Under this key a weights file says by which recognisers its training was rewarded (a JSON list).
REWARDED_BY = "reward_recognisers"


@dataclass(frozen=True)
class Judge:
    """The recogniser that measures, and what is known of those that it must not be.

    Attributes:
        encoder: itself.
        conditioning: the recogniser that the generator was shown the person with; None where nobody knows.
        makers: names of all recognisers that had a part, as far as declared.
        remarks: what a reader must know of its independence; empty when all is declared and differs.
        same: whether it had a part in making the pictures.
    """

    encoder: FaceEncoder
    conditioning: FaceEncoder | None
    makers: tuple[str, ...]
    remarks: tuple[str, ...]
    same: bool


def choose_judge(
    name: str,
    conditioning: str | None,
    rewards: Sequence[str] = (),
    *,
    device: str = "auto",
    allow_same: bool = False,
) -> Judge:
    """Load the judge and hold it against the recognisers that made the pictures.

    The comparison is by name and by weights: the same network under another name is found where its weights are here.

    Args:
        name: of the judge, as `FaceEncoder.from_pretrained` takes it.
        conditioning: the recogniser that the generator was shown the person with, where it is known.
        rewards: recognisers that a loss or a reward of the training used.
        allow_same: `--same-judge`: go on, and remark on it.

    Raises:
        IdgenError: the judge had a part; or it can not be loaded.
    """
    from idgen.faces import FaceEncoder

    judge = FaceEncoder.from_pretrained(name, device=device)
    own = recogniser_fingerprint(judge)
    shown: FaceEncoder | None = None
    guilty, remarks = [], []
    conditioning = recogniser_name(conditioning) if conditioning else None
    makers = tuple(dict.fromkeys([*([conditioning] if conditioning else []), *map(recogniser_name, rewards)]))
    for maker in makers:
        try:
            encoder = FaceEncoder.from_pretrained(maker, device=device)
        except IdgenError:
            remarks.append(f"the recogniser {maker!r} is not on this machine: compared with the judge by name only")
            same = maker in (recogniser_name(name), judge.recogniser)
        else:
            same = recogniser_fingerprint(encoder) == own or encoder.recogniser == judge.recogniser
            if maker == conditioning:
                shown = encoder
        if same:
            guilty.append(maker)
    if guilty and not allow_same:
        part = "conditioned" if conditioning in guilty else "rewarded"
        others = [other for other in FAMILY if other not in (name, *guilty)] or ["buffalo_l", "antelopev2"]
        raise IdgenError(
            f"the judge {name!r} is the recogniser that {part} these pictures: its figures would flatter them; choose another"
            f" with --judge (such as {others[0]}), or say --same-judge, which the report then says too"
        )
    if guilty:
        remarks.insert(
            0, f"SAME JUDGE: {', '.join(guilty)} had a part in making these pictures; the identity figures flatter them"
        )
    if conditioning is None:
        remarks.append(
            "nobody said by which recogniser these pictures were made (--made-with NAME): that the judge had no part is not known"
        )
    return Judge(
        judge,
        shown,
        makers,
        tuple(remarks),
        bool(guilty),
    )


def declared_rewards(weights: Path) -> list[str]:
    """The recognisers that a weights file, or those below a folder, say they were rewarded by, in their headers."""
    import json

    from idgen.checkpoint import load_metadata

    names: list[str] = []
    files = [weights] if weights.is_file() else weights.rglob("*")
    for path in sorted(path for path in files if path.suffix == ".safetensors"):
        try:
            listed = json.loads(load_metadata(path).get(REWARDED_BY, "[]"))
        except ValueError:
            raise IdgenError(
                f"the header of {path} names {REWARDED_BY} as no JSON list: mend it with `idgen convert`"
            ) from None
        names += [str(one) for one in (listed if isinstance(listed, list) else [listed])]
    return list(dict.fromkeys(names))
