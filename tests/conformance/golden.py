"""Golden data: what the original implementation of a method computed, to be met by ours.

A golden is a folder with README.json and tensors.safetensors. Weights and inputs are not stored: each is a frozen
function of (seed, name, shape), which this file implements. Outputs are stored, large ones as every n-th value with
statistics over all of them.

    golden = Golden(folder)
    golden.weights("unet.")      # {published key without the prefix: tensor}, in the published order
    golden.inputs()              # {name: tensor}
    golden.check({"eps": ours})  # AssertionError with a line for each output that differs, or that is left out
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

DEFAULT_ROOT = Path(__file__).parents[1] / "golden"


def root() -> Path:
    """The folder of goldens: $IDGEN_GOLDEN, or the copies beside the tests."""
    return Path(os.environ.get("IDGEN_GOLDEN") or DEFAULT_ROOT)


def folders() -> list[Path]:
    return sorted(path for path in root().iterdir() if path.is_dir())


def goldens(name: str) -> list[Path]:
    """The folders that hold a golden of this computation, for `pytest.mark.parametrize`.

    A test module claims a computation by calling this with its literal name; test_known.py finds what nobody claims.
    """
    return [folder for folder in folders() if claimed(folder, [name])]


def claimed(folder: Path, names: list[str]) -> bool:
    """Whether a folder is a golden of one of the computations: it, or its README.json, bears the name (and a suffix)."""
    own = {folder.name}
    if (folder / "README.json").is_file():
        own.add(json.loads((folder / "README.json").read_text()).get("name", folder.name))
    return any(re.fullmatch(rf"{re.escape(name)}([_.-].*)?", one) for one in own for name in names)


class Golden:
    """One golden. `config` holds every size that its weights, inputs and outputs depend on."""

    def __init__(self, folder: Path) -> None:
        self.meta: dict[str, Any] = json.loads((folder / "README.json").read_text())
        self.stored = load_file(folder / "tensors.safetensors")
        self.seed: int = self.meta["seed"]
        self.config: dict[str, Any] = self.meta["config"]

    def weights(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The state dict behind a prefix, by published keys, the prefix removed."""
        spec = self.meta["weights"]
        made: dict[str, np.ndarray] = {}
        for key, shape, dtype in spec["keys"]:
            value = np.asarray(self._weight(key, shape, made))  # of a tensor without axes numpy makes a scalar
            made[key] = value.astype(dtype).reshape(shape)
        return {
            key.removeprefix(prefix): torch.from_numpy(value) for key, value in made.items() if key.startswith(prefix)
        }

    def inputs(self) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(make_input(self.seed, name, spec["shape"], spec["dtype"], spec["recipe"]))
            for name, spec in self.meta["inputs"].items()
        }

    def check(self, results: Mapping[str, torch.Tensor]) -> None:
        """Compare every output of the golden; one that is left out is a failure too."""
        lines = [f"{name}: not computed" for name in self.meta["outputs"] if name not in results]
        lines += [line for name, value in results.items() if (line := self.difference(name, value.numpy(force=True)))]
        assert not lines, "\n".join(lines)

    def difference(self, name: str, got: np.ndarray) -> str:
        """What is wrong with one output; empty when it is within tolerance."""
        spec, ref = self.meta["outputs"][name], self.stored[name].astype(np.float64)
        if list(got.shape) != spec["shape"]:
            return f"{name}: shape {list(got.shape)}, expected {spec['shape']}"
        tolerance = spec.get("tolerance") or self.meta["tolerance"]
        if "int" in spec["dtype"] and "tolerance" not in spec:
            tolerance = {"rtol": 0, "atol": 0}
        all_values = got.astype(np.float64)
        kept = all_values.reshape(-1)[:: spec["stride"]] if "stride" in spec else all_values
        error = np.abs(kept - ref)
        if "mean_abs" in tolerance:
            good = error.mean() <= tolerance["mean_abs"]
        else:
            good = (error <= tolerance["atol"] + tolerance["rtol"] * np.abs(ref)).all()
            if "stride" in spec:
                good = good and _statistics_agree(all_values, spec["stats"], tolerance)
        if good:
            return ""
        return f"{name}: off by up to {error.max(initial=0):.3g} ({error.mean():.3g} on average), tolerance {tolerance}"

    def _weight(self, key: str, shape: list[int], made: Mapping[str, np.ndarray]) -> np.ndarray:
        """First rule whose pattern matches the whole key, else the default kind."""
        rules = self.meta["weights"]["rules"]
        pattern, kind = next((rule for rule in rules if re.fullmatch(rule[0], key)), (None, default_kind(key, shape)))
        operation, _, argument = kind.partition(":")
        if operation == "alias":  # the same tensor as an earlier key, whose name refers to the pattern's groups
            match = re.fullmatch(pattern or "", key)
            assert match is not None
            return made[match.expand(argument)]
        if operation == "const":
            return np.full(shape, float(argument))
        if operation == "schedule":
            return ddpm_schedule(**self.meta["weights"]["schedule"])[key.split(".")[-1]]
        noise = draw(self.seed, key, shape)
        if operation == "embedding_zero_row":
            value = WEIGHTS["embedding"](noise)
            value[int(argument)] = 0
            return value
        return WEIGHTS[operation](noise)


def draw(seed: int, name: str, shape: list[int]) -> np.ndarray:
    """Float32 standard normal values, a function of seed, name and shape only (numpy's RandomState is frozen)."""
    generator = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()) & 0xFFFFFFFF)
    return np.asarray(generator.standard_normal(tuple(shape)), np.float32)


WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "matrix": lambda n: n * np.float32(max(1, int(np.prod(n.shape[1:]))) ** -0.5),  # 1 / sqrt(fan in)
    "norm": lambda n: 1 + np.float32(0.1) * n,
    "bias": lambda n: np.float32(0.02) * n,
    "prelu": lambda n: np.float32(0.25) + np.float32(0.05) * n,
    "embedding": lambda n: np.float32(0.02) * n,
    "half": lambda n: np.float32(0.5) * n,
    "unit": lambda n: n,
}

INPUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal": lambda n: n,
    "tanh": np.tanh,
    "sigmoid": lambda n: 1 / (1 + np.exp(-n)),
    "abs_plus_half": lambda n: np.abs(n) + 0.5,
    "positive": lambda n: n > 0,
}


def default_kind(key: str, shape: list[int]) -> str:
    if len(shape) >= 2:
        return "matrix"
    return "norm" if key.endswith("weight") else "bias"


def make_input(seed: int, name: str, shape: list[int], dtype: str, recipe: list) -> np.ndarray:
    kind, *arguments = recipe
    if kind == "value":
        return np.asarray(arguments[0], dtype).reshape(shape)
    if kind == "rectangle":  # ones inside rows y0:y1 and columns x0:x1 of the last two axes
        y0, y1, x0, x1 = arguments
        mask = np.zeros(shape, dtype)
        mask[..., y0:y1, x0:x1] = 1
        return mask
    if kind == "pattern":
        return _pattern(*shape[:2])
    return np.asarray(INPUTS[kind](draw(seed, f"in.{name}", shape))).astype(dtype)


def ddpm_schedule(linear_start: float, linear_end: float, timesteps: int) -> dict[str, np.ndarray]:
    """The buffers of a latent-diffusion model by their state-dict names, float64."""
    beta = np.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=np.float64) ** 2
    total = np.cumprod(1 - beta)
    before = np.append(1.0, total[:-1])
    variance = beta * (1 - before) / (1 - total)
    return {
        "betas": beta,
        "alphas_cumprod": total,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": total**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - total) ** 0.5,
        "log_one_minus_alphas_cumprod": np.log(1 - total),
        "sqrt_recip_alphas_cumprod": (1 / total) ** 0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / total - 1) ** 0.5,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": beta * before**0.5 / (1 - total),
        "posterior_mean_coef2": (1 - before) * (1 - beta) ** 0.5 / (1 - total),
    }


def _pattern(height: int, width: int) -> np.ndarray:
    """A uint8 RGB test picture (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height - 1.0, width - 1.0]).reshape(2, 1, 1)
    disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1) * 1.0
    channels = [0.5 + 0.5 * np.sin(12 * x + 3 * y), 0.5 + 0.5 * np.cos(9 * y), disc]
    return np.round(np.stack(channels, -1) * 255).astype(np.uint8)


def _statistics_agree(values: np.ndarray, stats: dict[str, float], tolerance: dict[str, float]) -> bool:
    """The statistics cover the values of which only every n-th is stored."""
    limit = tolerance["atol"] + tolerance["rtol"] * stats["abs_sum"] / values.size
    pairs = (
        (values.mean(), stats["mean"]),
        (values.std(), stats["std"]),
        (np.abs(values).sum() / values.size, stats["abs_sum"] / values.size),
    )
    return all(abs(ours - theirs) <= limit for ours, theirs in pairs)
