"""Folders of photos, as people have them, into `Material`."""

from __future__ import annotations

import ast
import csv
import difflib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from idgen.errors import IdgenError
from idgen.evaluation.material import Job, Material, Photo, check_text, image_files, subfolders
from idgen.evaluation.protocol import Protocol


def read_references(folder: Path, protocol: Protocol) -> Material:
    """The people of a references folder, by the protocol's layout; nothing generated yet.

    Layouts:
        folders: NAME/*.png, the first `references` of them (by name) being the references; or NAME/reference/*.png and
            NAME/other/*.png.
        photos: pictures side by side, each a person of its own, unless the protocol's `person` pattern finds the name in
            the file's.
        ffhq_ref, celebahq_idi: the published data sets of ReF-LDM and PVA.

    Raises:
        IdgenError: an empty folder, a file that is no picture, a person without a reference, fewer than two people.
    """
    readers = {"folders": _folders, "photos": _photos, "ffhq_ref": _ffhq_ref, "celebahq_idi": _celebahq_idi}
    if protocol.layout not in readers:
        raise IdgenError(
            f"protocol {protocol.name!r} renders its own people: leave --references out, or choose another protocol"
        )
    material = readers[protocol.layout](folder, protocol)
    if len(material.people) < 2:
        raise IdgenError(
            f"{folder} holds one person only ({material.people[0]}): an evaluation compares people and needs at least 2,"
            " each in a folder of their own"
        )
    return material


def read_crowd(folder: Path) -> list[Photo]:
    """NAME/*.png as photos of numbered people: `--training`."""
    people = subfolders(folder)
    if not people:
        raise IdgenError(f"{folder} holds no folders: put each person's photos in a folder of their own")
    return [
        Photo(path, f"{path.parent.name}/{path.name}", i)
        for i, person in enumerate(people)
        for path in image_files(person)
    ]


def read_lookalikes(folder: Path, people: Sequence[str]) -> list[Photo]:
    """NAME/RIVAL/*.png: for each person of the evaluation, people of the same appearance."""
    photos = []
    for index, name in enumerate(people):
        rivals = subfolders(folder / name)
        if not rivals:
            raise IdgenError(f"{folder / name} holds no folders: put each lookalike of {name} in a folder of their own")
        photos += [
            Photo(path, f"{name}/{rival.name}/{path.name}", index, rival=number)
            for number, rival in enumerate(rivals)
            for path in image_files(rival)
        ]
    return photos


def read_generated(folder: Path, material: Material) -> list[Photo]:
    """The pictures of a folder, each given to its person.

    Whose a picture is: metadata.jsonl with `file_name`, `person` and perhaps `prompt`, where there is one; else the
    folder it is in; else the name that its own begins with (`anna_01.png`); for restoration and inpainting the target
    whose name it begins with.

    Raises:
        IdgenError: an empty folder, a picture of nobody known, people or targets without a picture.
    """
    if material.jobs:
        photos = _by_target(folder, material.jobs)
    elif (folder / "metadata.jsonl").is_file():
        photos = _by_metadata(folder, material.people)
    else:
        photos = _by_place(folder, material.people)
    done = {photo.target for photo in photos}
    left = [job.result for job in material.jobs if job.target not in done]
    if left:
        raise IdgenError(
            f"{folder} holds no result of {len(left)} of the {len(material.jobs)} originals ({_some(left)}): make them"
        )
    missing = [name for i, name in enumerate(material.people) if not any(photo.person == i for photo in photos)]
    if missing:
        raise IdgenError(
            f"{folder} holds no picture of {len(missing)} of the {len(material.people)} people ({_some(missing)}):"
            " make them, or take these people out of the references"
        )
    return photos


def _folders(folder: Path, protocol: Protocol) -> Material:
    people, loose = subfolders(folder), image_files(folder)
    if not people and not loose:
        raise IdgenError(f"{folder} is empty: put each person's photos in a folder of their own")
    if not people:
        return Material([folder.name], [Photo(path, path.name, 0) for path in loose], [])
    if loose:
        raise IdgenError(f"{loose[0]} lies beside the people's folders: put it in the folder of the person it shows")
    references, others = [], []
    for index, person in enumerate(people):
        split = {part.name: part for part in subfolders(person)}
        if split:
            unknown = sorted(set(split) - {"reference", "other"})
            if unknown or "reference" not in split:
                raise IdgenError(f"{person} holds folders {_some(sorted(split))}: they are called reference and other")
            shown = image_files(split["reference"])
            rest = image_files(split["other"]) if "other" in split else []
        else:
            photos = image_files(person)
            shown, rest = photos[: protocol.references], photos[protocol.references :]
        if not shown:
            raise IdgenError(f"{person} is empty: a person needs at least one reference photo")
        references += [_photo(path, folder, index) for path in shown]
        others += [_photo(path, folder, index) for path in rest]
    return Material([person.name for person in people], references, others)


def _photos(folder: Path, protocol: Protocol) -> Material:
    files = image_files(folder)
    if not files:
        raise IdgenError(f"{folder} holds no images: protocol {protocol.name!r} takes portraits that lie side by side")
    by_name: dict[str, list[Path]] = {}
    for path in files:
        found = re.search(protocol.person, path.stem) if protocol.person else None
        by_name.setdefault(found[1] if found and found.re.groups else path.stem, []).append(path)
    references, others = [], []
    for index, paths in enumerate(by_name.values()):
        references += [_photo(path, folder, index) for path in paths[: protocol.references]]
        others += [_photo(path, folder, index) for path in paths[protocol.references :]]
    return Material(list(by_name), references, others)


def _ffhq_ref(folder: Path, protocol: Protocol) -> Material:
    """reference_mapping/test_references.csv: gt_image, lq_image (optional), ref_image (a list); pictures in images512x512.

    Several rows are of one person (of the published test set 857 of 150): those that share a picture. Each picture keeps
    the references of its own row.
    """
    table = folder / "reference_mapping" / "test_references.csv"
    try:
        with open(table, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        listed = [
            (Path(row["gt_image"]), row.get("lq_image"), [Path(name) for name in ast.literal_eval(row["ref_image"])])
            for row in rows
        ]
    except FileNotFoundError:
        raise IdgenError(f"no {table}: --references is the folder of FFHQ-Ref as its authors publish it") from None
    except (KeyError, TypeError, ValueError, SyntaxError, OSError, csv.Error) as error:
        raise IdgenError(f"{table} is not FFHQ-Ref's table of gt_image, ref_image ({type(error).__name__})") from None
    pictures = folder / "images512x512" if (folder / "images512x512").is_dir() else folder
    kind = "severe" if "severe" in protocol.name else "moderate"
    degraded = folder / "test_images" / f"{kind}_degrad"
    person = _joined([[original, *shown] for original, _, shown in listed])
    photos: dict[Path, Photo] = {}

    def photo(name: Path, index: int) -> Photo:
        return photos.setdefault(name, _photo(pictures / name, pictures, index))

    people: dict[int, str] = {}  # called after the first of their pictures
    jobs = []
    for index, (original, low_quality, shown) in zip(person, listed, strict=True):
        target, own = photo(original, index), [photo(name, index) for name in shown[: protocol.references]]
        job = Job(index, Path(low_quality) if low_quality else degraded / target.name, target, own)
        people.setdefault(index, job.result)
        jobs.append(job)
    _check_results(jobs, table)
    references = dict.fromkeys(one for job in jobs for one in job.references)
    return Material(list(people.values()), list(references), [job.target for job in jobs], jobs=jobs)


def _celebahq_idi(folder: Path, protocol: Protocol) -> Material:
    """annotation/idi-5.json of CelebAHQ-IDI: test_ids, id2image[id] = {infer, ref}; pictures in image/, masks in mask/."""
    table = folder / "annotation" / f"idi-{protocol.references}.json"
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
        parts: dict[str, Any] = {str(one): content["id2image"][str(one)] for one in content["test_ids"]}
        pairs = [(name, list(part["ref"]), list(part["infer"])) for name, part in parts.items()]
    except FileNotFoundError:
        raise IdgenError(f"no {table}: --references is the folder of CelebAHQ-IDI as its authors publish it") from None
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise IdgenError(f"{table} is not CelebAHQ-IDI's annotation ({type(error).__name__} {error})") from None
    pictures = folder / "image"
    references, others, jobs = [], [], []
    for index, (_, shown, infer) in enumerate(pairs):
        own = [_photo(pictures / name, pictures, index) for name in shown]
        references += own
        for name in infer:
            target = _photo(pictures / name, pictures, index)
            others.append(target)
            job = Job(index, pictures / name, target, own)
            jobs.append(replace(job, mask=folder / protocol.masks / f"{job.result}.png"))
    _check_results(jobs, table)
    return Material([name for name, _, _ in pairs], references, others, jobs=jobs)


def _joined(groups: Sequence[Sequence[Path]]) -> list[int]:
    """For each group of names a number, the same for groups that share a name, be it by way of others; in order from 0."""
    root = list(range(len(groups)))

    def top(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    first: dict[Path, int] = {}
    for index, names in enumerate(groups):
        for name in names:
            one, other = sorted((top(index), top(first.setdefault(name, index))))
            root[other] = one
    numbers: dict[int, int] = {}
    return [numbers.setdefault(top(index), len(numbers)) for index in range(len(groups))]


def _check_results(jobs: Sequence[Job], table: Path) -> None:
    """Refuse originals whose results could not be told apart, or would lie outside their folder."""
    names = [job.result for job in jobs]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise IdgenError(f"{table} lists {twice} twice: the results are named after the originals, one for each")
    outside = next((name for name in names if ".." in Path(name).parts), None)
    if outside is not None:
        raise IdgenError(f"{table} lists {outside}, which lies outside the folder of its pictures")


def _by_metadata(folder: Path, people: Sequence[str]) -> list[Photo]:
    photos = []
    numbers = {name: index for index, name in enumerate(people)}
    table = folder / "metadata.jsonl"
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()  # editors on Windows begin a file with a mark
    except OSError as error:
        raise IdgenError(f"cannot read {table}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise IdgenError(f"{table} is not UTF-8 ({error.reason}): save it as UTF-8") from None
    for count, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            name, person, prompt = str(row["file_name"]), str(row["person"]), str(row.get("prompt", ""))
        except (ValueError, KeyError, TypeError):
            raise IdgenError(
                f"{table}, line {count}: needs the keys file_name and person (prompt is optional)"
            ) from None
        for text in (name, prompt):
            check_text(text, f"{table}, line {count}: a text")
        if person not in numbers:
            raise IdgenError(
                f"{folder / name} is of {person!r}, who is not among the references{_near(person, people)}"
            )
        if not (folder / name).is_file():
            raise IdgenError(f"no such file: {folder / name} ({table.name}, line {count})")
        photos.append(Photo(folder / name, name, numbers[person], prompt))
    if not photos:
        raise IdgenError(f"{table} is empty: it lists the generated images, one JSON object a line")
    return photos


def _by_place(folder: Path, people: Sequence[str]) -> list[Photo]:
    numbers = {name: index for index, name in enumerate(people)}
    photos = []
    for part in subfolders(folder):
        if part.name not in numbers:
            raise IdgenError(f"{part} is the folder of nobody among the references{_near(part.name, people)}")
        photos += [_photo(path, folder, numbers[part.name]) for path in image_files(part)]
    loose = image_files(folder)
    if not photos and not loose:
        raise IdgenError(f"{folder} holds no images: put the generated ones there, NAME/*.png or NAME_*.png")
    for path in loose:
        owner = _owner(path.stem, people)
        if owner is None:
            raise IdgenError(f"{path} is of nobody among the references ({_some(people)}): name it NAME_01.png")
        photos.append(_photo(path, folder, numbers[owner]))
    return photos


def _by_target(folder: Path, jobs: Sequence[Job]) -> list[Photo]:
    targets = {job.result: job.target for job in jobs}
    photos = []
    for path in _all_images(folder):
        name = path.relative_to(folder)
        # In the original's own folder, or, where originals lie in none, in any.
        owner = _owner(name.with_suffix("").as_posix(), list(targets)) or _owner(path.stem, list(targets))
        if owner is None:
            raise IdgenError(
                f"{path} is named after none of the {len(targets)} originals, such as {next(iter(targets))}.png"
            )
        photos.append(Photo(path, name.as_posix(), targets[owner].person, target=targets[owner]))
    if not photos:
        raise IdgenError(f"{folder} holds no images: put the results there, named after the originals")
    return photos


def _all_images(folder: Path) -> list[Path]:
    return [*image_files(folder), *(path for part in subfolders(folder) for path in _all_images(part))]


def _owner(stem: str, names: Sequence[str]) -> str | None:
    """The longest name that the stem is, or begins with before a joint."""
    fitting = [name for name in names if stem == name or (stem.startswith(name) and stem[len(name)] in "_-. ")]
    return max(fitting, key=len, default=None)


def _photo(path: Path, root: Path, person: int) -> Photo:
    return Photo(path, path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name, person)


def _near(name: str, people: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, people, 1, 0.6)
    return f": did you mean {near[0]!r}?" if near else f" ({_some(people)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
