"""Whose pictures lie in a folder: whatever decides them is noted beside them, and other ones are never taken for them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.errors import IdgenError
from idgen.evaluation.evidence import shown_references
from idgen.evaluation.fingerprints import weights_fingerprint
from idgen.evaluation.material import Material, Photo
from idgen.evaluation.output import FORMAT
from idgen.evaluation.processes import Processes
from idgen.evaluation.protocol import Protocol
from idgen.files import atomic_write

if TYPE_CHECKING:
    from idgen.evaluation.runner import Request

RULES = {
    "name",
    "references",
    "shown",
    "images",
    "prompts",
    "pipeline",
    "call",
    "masks",
    "rendered",
    "identity_guidance",
}


def settings_of(request: Request, protocol: Protocol, material: Material, fingerprint: str) -> dict[str, Any]:
    """What decides the generated pictures.

    Args:
        material: the people, with their references and jobs.
        fingerprint: of the pipeline's weights.

    Raises:
        IdgenError: a photo can not be read.
    """
    base = Path(request.base).expanduser() if request.base else None
    return {
        "format": FORMAT,
        "weights": fingerprint,
        "base": weights_fingerprint(base) if base is not None and base.exists() else request.base,
        "seed": request.seed,
        "dtype": request.dtype,
        "protocol": protocol.model_dump(mode="json", include=RULES),
        "photos": _photos(material, protocol),
    }


def claim(out: Path, settings: dict[str, Any], processes: Processes) -> None:
    """Refuse a folder whose pictures were made by other weights or settings, or of other photos; else note ours."""
    file = out / "evaluation.json"
    if file.is_file():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        if before.keys() != settings.keys():
            raise IdgenError(f"{out} was begun by another version of idgen: choose another --out, or delete it")
        other = [name for name in settings if before.get(name) != settings[name]]
        if other:
            raise IdgenError(
                f"{out} holds pictures of another evaluation (another {', '.join(other)}): choose another --out, or delete it"
            )
    elif processes.main:
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    processes.wait()


def _photos(material: Material, protocol: Protocol) -> str:
    """SHA-256 over the content of all photos that the generator is given, and whom or what each is for."""
    given: list[tuple[str, Photo]] = []
    for job in material.jobs:
        parts = [job.image, *([job.mask] if job.mask is not None else [])]
        given += [(job.result, Photo(path, path.name, job.person)) for path in parts]
        given += [(job.result, photo) for photo in job.references[: protocol.seen]]
    if not material.jobs:
        given = [(material.people[photo.person], photo) for photo in shown_references(material, protocol)]
    digest, known = hashlib.sha256(), {}
    for name, photo in given:
        key = photo.source if isinstance(photo.source, Path) else id(photo)
        if key not in known:
            known[key] = photo.digest()
        digest.update(json.dumps(name).encode() + known[key])
    return digest.hexdigest()
