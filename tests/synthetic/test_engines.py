"""The two rasterisers and the two engines of the renderer: numba on the CPU, torch on any device, draw the same picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from idgen.errors import IdgenError
from idgen.synthetic import Person, Renderer, Shot, sample_person, sample_shot
from idgen.synthetic.geometry import build_scene, triangles
from idgen.synthetic.rasteriser import NOTHING, rasterise_numpy, rasterise_torch


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return [sample_person(0, 400_300 + number) for number in range(3)]


@pytest.fixture(scope="module")
def shots(people: list[Person]) -> list[Shot]:
    return [sample_shot(0, person, 1) for person in people]


def test_both_rasterisers_see_the_same_triangles_at_the_same_depths(people: list[Person], shots: list[Shot]) -> None:
    corners, _ = triangles()
    cull = np.arange(len(corners)) % 3 == 0
    scenes = [build_scene(person, shot) for person, shot in zip(people[:2], shots[:2], strict=True)]
    xy = np.stack([(scene.xy * 64 - 0.5).astype(np.float32) for scene in scenes])
    depth = np.stack([scene.depth for scene in scenes])
    batched = rasterise_torch(
        torch.from_numpy(xy), torch.from_numpy(depth), torch.from_numpy(corners), torch.from_numpy(cull), 64, 72
    )
    for i in range(2):
        seen, nearest = rasterise_numpy(xy[i], depth[i], corners, cull, 64, 72)
        assert (seen != NOTHING).mean() > 0.2
        np.testing.assert_array_equal(batched[0][i].numpy(), seen)
        np.testing.assert_array_equal(batched[1][i].numpy(), nearest)


@pytest.mark.parametrize("rasterise", [rasterise_numpy, lambda *a: rasterised(*a)], ids=["numba", "torch"])
def test_the_nearer_triangle_wins_and_of_two_alike_the_first(rasterise) -> None:  # type: ignore[no-untyped-def]
    xy = np.array([[-1, -1], [40, -1], [-1, 40]] * 3, np.float32)
    depth = np.repeat(np.array([2, 1, 1], np.float32), 3)
    corners = np.arange(9, dtype=np.int32).reshape(3, 3)
    seen, nearest = rasterise(xy, depth, corners, np.zeros(3, bool), 8, 8)
    assert (seen == 1).all()
    np.testing.assert_allclose(nearest, 1, rtol=1e-6)


@pytest.mark.parametrize("supersampling", [1, 2])
def test_the_torch_engine_draws_the_same_picture(people: list[Person], shots: list[Shot], supersampling: int) -> None:
    dressed = [replace(shots[0], style=replace(shots[0].style, glasses="glasses", hair="long")), *shots[1:3]]
    numba, in_torch = (
        Renderer("cpu", engine).render(people, dressed, size=40, supersampling=supersampling)
        for engine in ("numba", "torch")
    )
    change = np.abs(numba.images.astype(int) - in_torch.images)
    assert change.mean() < 0.05  # of 255
    assert (change.max(-1) <= 2).mean() > 0.998
    assert (numba.parsing == in_torch.parsing).mean() > 0.998
    for name in ("landmarks5", "landmarks68", "pose", "expression"):
        np.testing.assert_array_equal(getattr(numba, name), getattr(in_torch, name))


@pytest.mark.gpu
def test_cuda_draws_the_same_picture(people: list[Person], shots: list[Shot]) -> None:
    batch = Renderer("cpu").render(people, shots, size=96)
    found = Renderer("cuda").render(people, shots, size=96)
    change = np.abs(found.images.astype(int) - batch.images)
    assert change.mean() < 0.05
    assert (change.max(-1) <= 2).mean() > 0.998
    assert (found.parsing == batch.parsing).mean() > 0.998


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps"])
def test_a_device_that_it_can_not_use_is_refused(device: str) -> None:
    with pytest.raises(IdgenError, match="device"):
        Renderer(device)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(IdgenError, match="unknown engine 'opengl'"):
        Renderer("cpu", "opengl")


def rasterised(xy, depth, corners, cull, height, width):  # type: ignore[no-untyped-def]
    tensors = (torch.from_numpy(a) for a in (xy[None], depth[None], corners, cull))
    seen, nearest = rasterise_torch(*tensors, height, width)
    return seen[0].numpy(), nearest[0].numpy()
