"""The whole mini family with random weights: `tiny.tiny_root` plus recognisers, judge statistics, detector, probe and reader.

A random detector finds anything anywhere: tests put `face_in_the_middle` in place of its `detect`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from idgen.checkpoint import save_weights
from idgen.metrics.statistics import JudgeStatistics
from idgen.models.mini_detector import Detections, MiniDetector
from idgen.models.probe import AttributeProbe, AttributeReader
from idgen.models.recogniser_reader import RecogniserReader, open_recogniser
from idgen.models.registry import build_recogniser
from tests.tiny import tiny_root

PROBE_CLASSES = {
    "expression": ["neutral", "smiling"],
    "hair_style": ["bald", "long"],
    "hair_colour": ["black", "blond"],
    "glasses": ["glasses", "none"],
    "head": ["left", "straight"],
    "beard": ["beard", "none"],
}


def tiny_family(folder: Path) -> Path:
    """Write it into a folder for $IDGEN_MINI."""
    tiny_root(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for component, architecture, name in (("recogniser", "mini_recogniser", "mini"), ("judge", "judge", "judge")):
            config = {"architecture": architecture, "name": name, "embedding_dim": 512}
            _save(folder / component, config, build_recogniser(config))
        _save(folder / "detector", {"architecture": "mini_detector"}, MiniDetector())
        probe = AttributeProbe(PROBE_CLASSES, widths=(4, 4, 4))
        _save(folder / "probe", probe.config, probe)
        reader = RecogniserReader(PROBE_CLASSES, *open_recogniser(folder / "recogniser"))
        _save(folder / "reader", reader.config, reader)
    JudgeStatistics(0.5, 0.1, 0.6, 0.4, people=2, photos=2, source="made up").save(folder / "judge")
    return folder


def face_in_the_middle(self: MiniDetector, images: Sequence[np.ndarray], threshold: float = 0.5) -> list[Detections]:
    """In place of `MiniDetector.detect`: one face in every picture, as large as a portrait shows it."""
    found = []
    for image in images:
        size = torch.tensor([image.shape[1], image.shape[0]], dtype=torch.float32)
        points = torch.tensor([[0.38, 0.47], [0.62, 0.47], [0.5, 0.62], [0.41, 0.75], [0.59, 0.75]])
        box = torch.cat([size * 0.25, size * 0.85])
        found.append(Detections(box[None], (points * size)[None], torch.ones(1)))
    return found


def _save(folder: Path, config: dict[str, Any], module: torch.nn.Module) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = module.own_state() if isinstance(module, AttributeReader) else module.state_dict()
    save_weights(folder / "model.safetensors", state)
