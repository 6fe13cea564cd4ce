"""`idgen doctor`: what this machine and this installation can do, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from idgen.console import say
from idgen.devices import cpu_features, cpu_has_bf16, resolve_device, resolve_dtype
from idgen.version import __version__

HELP = "say which versions, devices and weights are here, what is missing and how to get it"

# The component folders of the mini family, and the training that makes each.
MINI = {
    "vae": "idgen.train.autoencoder",
    "tokenizer": "idgen.train.text_encoder",
    "text_encoder": "idgen.train.text_encoder",
    "unet": "idgen.train.base",
    "scheduler": "idgen.train.base",
    "arc2face": "idgen.train.arc2face",
    "encoder": "idgen.train.arc2face",
    "restore": "idgen.train.restore",
    "inpaint": "idgen.train.inpaint",
    "recogniser": "idgen.train.recogniser",
    "judge": "idgen.train.recogniser",
    "detector": "idgen.train.detector",
    "probe": "idgen.train.probe",
    "reader": "idgen.train.probe",
}
# insightface's packs of weights, and how each gets into its folder.
INSIGHTFACE = {
    "buffalo_l": "unpack buffalo_l.zip of the insightface releases into {folder}",
    "antelopev2": "unpack antelopev2.zip of the insightface releases into {folder}",
    "arc2face": "copy antelopev2 to {folder} and put arcface.onnx of FoivosPar/Arc2Face in place of its glintr100.onnx",
}
HUB = ("FoivosPar/Arc2Face", "stable-diffusion-v1-5/stable-diffusion-v1-5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`idgen doctor` has only the common flags."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Look at versions, device, dtypes and weights; `problems` says what is broken and how to mend it."""
    packages, problems = _packages()
    report: dict[str, Any] = {
        "idgen": __version__,
        "installed_at": Path(__file__).parents[1],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
    }
    if "torch" in packages:  # the one package without which nothing more can be said
        report |= {"cpu": _cpu(), "cuda": _cuda()}
        device = resolve_device(args.device)
        report |= {"device": str(device), "dtype": str(resolve_dtype(args.dtype, device)).removeprefix("torch.")}
    problems += _opencv()
    weights = {"mini": _mini(), "insightface": _insightface(), "hub": _hub()}
    problems += [
        {"what": f"the mini family lacks {name}", "mend": f"reinstall idgen, or train it: python -m {MINI[name]}"}
        for name, path in weights["mini"].items()
        if path is None
    ]
    report |= {"weights": weights, "missing": _how_to_get(weights), "problems": problems, "ok": not problems}
    _tell(report)
    return report


def _packages() -> tuple[dict[str, str], list[dict[str, str]]]:
    """Versions of what idgen needs, and the ones that are absent or out of range."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in metadata.requires("idgen-diffusion") or ()]
    except (ImportError, metadata.PackageNotFoundError):
        return {}, [
            {"what": "idgen is not installed here", "mend": "pip install -c constraints.txt -e . in the checkout"}
        ]
    found: dict[str, str] = {}
    problems = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            what = f"{requirement.name} is not installed"
        else:
            if requirement.specifier.contains(found[requirement.name], prereleases=True):
                continue
            what = f"{requirement.name} {found[requirement.name]} is not {requirement.specifier}"
        problems.append({"what": what, "mend": f"pip install '{requirement.name}{requirement.specifier}'"})
    return dict(sorted(found.items())), problems


def _cpu() -> dict[str, Any]:
    import torch

    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": sorted(cpu_features()),
        "bf16_in_hardware": cpu_has_bf16(),
    }


def _cuda() -> dict[str, Any]:
    import torch

    cards = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        memory, capability = card.total_memory / 2**30, f"{card.major}.{card.minor}"
        cards.append(
            {"name": card.name, "memory_gib": round(memory, 1), "capability": capability, "bf16": card.major >= 8}
        )
    return {"built_for": torch.version.cuda, "devices": cards}


def _opencv() -> list[dict[str, str]]:
    """insightface needs OpenCV, whose wheel needs libGL from the system; servers and containers often lack it."""
    try:
        import_module("cv2")
    except ImportError as error:
        mend = "reinstall it: pip install --force-reinstall opencv-python"
        if ".so" in str(error):
            mend = "apt-get install libgl1 libglib2.0-0 (or, without a screen, pip install opencv-python-headless)"
        return [{"what": f"OpenCV, which insightface needs, does not load: {error}", "mend": mend}]
    return []


def _mini() -> dict[str, Path | None]:
    from idgen.weights import mini_root

    root = mini_root()
    return {name: root / name if _has_files(root / name) else None for name in MINI}


def _insightface() -> dict[str, Path | None]:
    from idgen.weights import insightface_root

    root = insightface_root() / "models"
    return {name: root / name if any((root / name).glob("*.onnx")) else None for name in INSIGHTFACE}


def _hub() -> dict[str, Path | None]:
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = {name: Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots" for name in HUB}
    return {
        name: next((path for path in sorted(root.glob("*")) if _has_files(path)), None)
        for name, root in snapshots.items()
    }


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


def _how_to_get(weights: dict[str, dict[str, Path | None]]) -> dict[str, str]:
    """Where the weights come from that idgen can use and does not find; none of them is needed for the mini family."""
    from idgen.weights import insightface_root

    ways = {}
    for name, path in weights["insightface"].items():
        if path is None:
            folder = insightface_root() / "models" / name
            ways[name] = f"{INSIGHTFACE[name].format(folder=folder)} (for research only)"
    for name, path in weights["hub"].items():
        if path is None:
            ways[name] = f"hf download {name}"
    return ways


def _tell(report: dict[str, Any]) -> None:
    say(f"idgen {report['idgen']} in {report['installed_at']}, Python {report['python']}, {report['platform']}")
    say("packages     " + ", ".join(f"{name} {version}" for name, version in report["packages"].items()))
    if "cpu" in report:
        cpu, cuda = report["cpu"], report["cuda"]
        bf16 = "bf16 in hardware" if cpu["bf16_in_hardware"] else "no bf16 in hardware"
        say(f"CPU          {cpu['cores']} cores, {cpu['threads']} threads, {' '.join(cpu['features'])}; {bf16}")
        cards = ", ".join(f"{card['name']} ({card['memory_gib']} GiB)" for card in cuda["devices"])
        built_for = f"CUDA {cuda['built_for']}" if cuda["built_for"] else "CPU only"
        say(f"CUDA         {cards or 'no device'}; torch built for {built_for}")
        say(f"would use    {report['device']}, {report['dtype']}")
    for family, found in report["weights"].items():
        for name, path in found.items():
            say(f"{family:13}{name}: {path or 'not found'}")
    for name, way in report["missing"].items():
        say(f"to get {name}: {way}")
    for problem in report["problems"]:
        say(f"PROBLEM      {problem['what']}: {problem['mend']}")
    say("all is well" if report["ok"] else f"to mend: {len(report['problems'])}, see above")
