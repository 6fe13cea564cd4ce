"""insightface's model packs through its own FaceAnalysis, of which only detector and recogniser are loaded.

insightface and the OpenCV it needs are imported here and only when a pack is asked for. The packs' weights are for
non-commercial research only (deepinsight/insightface, README of the model zoo).
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from idgen.devices import resolve_device
from idgen.errors import IdgenError
from idgen.faces.detection import Face
from idgen.weights import insightface_root

if TYPE_CHECKING:
    from idgen.models.iresnet import IResNet

DOWNLOADS = "https://github.com/deepinsight/insightface/releases/download/model-zoo"
# What insightface itself can fetch, and Arc2Face's variant: antelopev2 with arcface.onnx in place of glintr100.onnx.
PACKS = ("buffalo_l", "buffalo_m", "buffalo_s", "antelopev2", "arc2face")
# At 640 px the detector sees small faces and misses those that fill the photo: those show at the smaller sizes.
DETECTION_SIZES = ((640, 640), (320, 320), (128, 128))

Loaded = tuple["ScrfdDetector", "OnnxRecogniser", str, torch.device]


def find_pack(name: str) -> Path:
    """The folder with a pack's .onnx files, fetched by insightface when it is missing and a network is there.

    Raises:
        IdgenError: it is missing and can not be fetched; says how to bring it here.
    """
    folder = insightface_root() / "models" / name
    if not folder.is_dir():
        _fetch(name, folder)
    return unnest(folder)


def unnest(folder: Path) -> Path:
    """The folder itself, or the one inside it that holds the .onnx files: antelopev2.zip unpacks one level too deep."""
    if any(folder.glob("*.onnx")):
        return folder
    inside = sorted({path.parent for path in folder.glob("*/*.onnx")})
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise IdgenError(f"{folder} holds several model packs: name one of {', '.join(str(path) for path in inside)}")
    raise IdgenError(
        f"{folder} is no face encoder: it holds neither .onnx files (an insightface pack) nor recogniser/ (a family like mini)"
    )


def load_pack(folder: Path, device: str | torch.device = "auto") -> Loaded:
    """Detector, recogniser, its name and the device: the arguments of FaceEncoder.

    Raises:
        IdgenError: insightface or OpenCV does not load, a model is damaged, or one of the two is not in the folder.
    """
    device = resolve_device(device)
    face_analysis = _import_face_analysis()
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] * (device.type == "cuda") + ["CPUExecutionProvider"]
    providers = [provider for provider in wanted if provider in onnxruntime.get_available_providers()]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
            app = face_analysis(
                name=str(folder.resolve()), allowed_modules=["detection", "recognition"], providers=providers
            )
            app.prepare(ctx_id=(device.index or 0) if device.type == "cuda" else -1, det_size=DETECTION_SIZES[0])
    except AssertionError as error:
        raise IdgenError(f"{folder} holds no detector: it needs a SCRFD .onnx such as det_10g.onnx") from error
    except Exception as error:  # onnxruntime and onnx raise kinds of their own
        reason = " ".join(str(error).split())[:200]
        raise IdgenError(
            f"a model in {folder} is truncated, damaged or not ONNX ({reason}): unpack the pack again"
        ) from error
    if "recognition" not in app.models:
        raise IdgenError(f"{folder} holds no recogniser: it needs an ArcFace .onnx such as w600k_r50.onnx")
    if not app.det_model.use_kps:
        raise IdgenError(f"the detector in {folder} gives no landmarks: use one with them, such as det_10g.onnx")
    recogniser = OnnxRecogniser(app.models["recognition"], device)
    # Who made an embedding is told by the recogniser's file: the packs share some, and users swap them.
    return ScrfdDetector(app.det_model), recogniser, Path(recogniser.path).stem, device


class ScrfdDetector:
    """insightface's detector as a Detector."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, image: np.ndarray) -> list[Face]:
        bgr = np.ascontiguousarray(image[..., ::-1])
        for size in DETECTION_SIZES:
            boxes, landmarks = self.model.detect(bgr, input_size=size)
            if len(boxes):
                break
        return [
            Face(box[:4].astype(np.float32), points.astype(np.float32), float(box[4]))
            for box, points in zip(boxes, landmarks, strict=True)
        ]


class OnnxRecogniser:
    """insightface's recogniser as a Recogniser: onnxruntime to embed, an IResNet with the same weights for gradients."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device
        self.path: str = model.model_file
        if tuple(model.input_size) != (112, 112):
            raise IdgenError(f"{self.path} takes faces of {model.input_size} px; idgen aligns them to 112")
        batch = model.input_shape[0]
        self.batch = batch if isinstance(batch, int) and batch > 0 else None  # exported for so many faces at once

    def embed(self, crops: np.ndarray) -> torch.Tensor:
        bgr = [np.ascontiguousarray(crop[..., ::-1]) for crop in crops]
        step = self.batch or len(bgr)
        rows = []
        for start in range(0, len(bgr), step):
            part = bgr[start : start + step]
            filled = part + [part[-1]] * (step - len(part))
            rows.append(self.model.get_feat(filled)[: len(part)])
        return torch.from_numpy(np.concatenate(rows)).float()

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.iresnet(crops.float())

    @cached_property
    def iresnet(self) -> IResNet:
        """The same network with gradients.

        Raises:
            IdgenError: it is another kind of network (the MobileFaceNet of buffalo_s).
        """
        from idgen.faces.onnx_import import iresnet_from_onnx

        return iresnet_from_onnx(self.path).requires_grad_(False).to(self.device)


def _import_face_analysis() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from insightface.app import FaceAnalysis
    except ImportError as error:
        if ".so" in str(error):  # libGL.so.1, libgthread: OpenCV's, from the system
            raise IdgenError(
                f"insightface needs OpenCV, which does not load ({error}): apt-get install libgl1 libglib2.0-0,"
                " or, without a screen, pip install opencv-python-headless"
            ) from error
        raise IdgenError(f"insightface does not load ({error}): pip install 'insightface>=2.0'") from error
    return FaceAnalysis


def _fetch(name: str, folder: Path) -> None:
    by_hand = f"fetch {DOWNLOADS}/{name}.zip and unpack it into {folder} (the weights are for research only)"
    if name == "arc2face":
        raise IdgenError(
            f"the face encoder 'arc2face' is not at {folder}: copy antelopev2 there and put arcface.onnx"
            " of huggingface.co/FoivosPar/Arc2Face in place of its glintr100.onnx (for research only)"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise IdgenError(f"the face encoder {name!r} is not at {folder} and HF_HUB_OFFLINE is set: {by_hand}")
    _import_face_analysis()
    from insightface.utils import ensure_available

    try:
        with contextlib.redirect_stdout(sys.stderr):
            ensure_available("models", name, root=str(insightface_root()))
    except Exception as error:  # whatever requests, urllib3, zipfile and the file system find
        with contextlib.suppress(OSError):
            folder.rmdir()  # an empty folder would pass for the pack the next time
        reason = type(error).__name__
        raise IdgenError(
            f"the face encoder {name!r} is not at {folder} and could not be fetched ({reason}): {by_hand}"
        ) from error
