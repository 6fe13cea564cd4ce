"""The W+ Adapter's edit directions: what they do to codes, and which files they refuse."""

import pickle

import numpy as np
import pytest
import torch

from idgen.adapters.wplus.directions import (
    ComponentDirection,
    GanspaceEdit,
    LinearDirection,
    load_ganspace,
    load_interfacegan,
    load_latent_direction,
    read_ganspace_edits,
)
from idgen.errors import IdgenError

LEVELS, DIM, COMPONENTS = 18, 512, 6


def codes(batch=2):
    return torch.randn(batch, LEVELS, DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pca(tmp_path):
    torch.manual_seed(1)
    comp = torch.linalg.qr(torch.randn(DIM, COMPONENTS))[0].T[:, None].contiguous()
    tensors = {"comp": comp, "mean": torch.randn(1, DIM), "std": torch.rand(COMPONENTS) + 0.5}
    torch.save(tensors, tmp_path / "ffhq_pca.pt")
    return tmp_path / "ffhq_pca.pt", tensors


@pytest.mark.parametrize("shape", [(1, DIM), (LEVELS, DIM), (1, LEVELS, DIM)])
def test_interfacegan_adds_its_vector_to_every_level(tmp_path, shape):
    vector, w = torch.randn(shape), codes()
    torch.save(vector, tmp_path / "smile.pt")
    edited = load_interfacegan(tmp_path / "smile.pt").apply(w, -4)
    torch.testing.assert_close(edited, w - 4 * vector.expand(1, LEVELS, DIM))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_latent_directions_leave_the_later_levels_alone(tmp_path, dtype):
    vector, w = np.random.RandomState(0).randn(LEVELS, DIM).astype(dtype), codes()
    np.save(tmp_path / "eyes_open.npy", vector)
    edited = load_latent_direction(tmp_path / "eyes_open.npy").apply(w, 2)
    assert edited.dtype == torch.float32
    torch.testing.assert_close(edited[:, :8], w[:, :8] + 2 * torch.from_numpy(vector[:8]).float())
    assert torch.equal(edited[:, 8:], w[:, 8:])


def test_ganspace_sets_the_distance_from_the_average_for_each_face_of_a_batch(pca):
    path, tensors = pca
    w = codes(3)
    edited = load_ganspace(path, 2, (0, 5)).apply(w, 7)
    component, deviation = tensors["comp"][2, 0], tensors["std"][2]
    distances = (edited[:, 0] - tensors["mean"][0]) @ component / deviation
    torch.testing.assert_close(distances, torch.full((3,), 7.0), atol=1e-4, rtol=0)
    steps = edited - w
    assert torch.equal(steps[:, 5:], torch.zeros_like(steps[:, 5:]))
    torch.testing.assert_close(steps[:, 1:5], steps[:, :1].expand(-1, 4, -1), atol=1e-5, rtol=0)


def test_the_distance_is_measured_at_the_first_level_even_when_it_stays(pca):
    w = codes()
    direction = load_ganspace(pca[0], 0, (4, 7))
    other = w.clone()
    other[:, 1:] += 3
    torch.testing.assert_close(direction.delta(w, 20), direction.delta(other, 20))
    assert direction.delta(w, 20)[:, :4].abs().max() == 0


def test_an_edit_keeps_the_codes_dtype_and_carries_gradients(pca):
    for direction in (LinearDirection(torch.randn(1, DIM)), load_ganspace(pca[0], 1, (2, 9))):
        assert direction.apply(codes().half(), 1.0).dtype == torch.float16
        w = codes().requires_grad_()
        direction.apply(w, 1.0).sum().backward()
        assert w.grad is not None


def test_codes_and_levels_that_do_not_fit_are_refused(pca):
    w = codes()
    for direction in (LinearDirection(torch.ones(LEVELS, DIM + 1)), LinearDirection(torch.ones(9, DIM))):
        with pytest.raises(IdgenError, match="this direction edits codes of the shape"):
            direction.apply(w, 1)
    with pytest.raises(IdgenError, match="this direction edits codes of the shape"):
        load_ganspace(pca[0], 0, (0, 3)).apply(w[0], 1)
    for levels in ((4, 19), (17, 30), (3, 3), (5, 2), (-2, 3)):
        with pytest.raises(IdgenError, match="these codes have 0 to 17"):
            load_ganspace(pca[0], 0, levels).apply(w, 1)
    with pytest.raises(IdgenError, match="has the components 0 to 5, not 6"):
        load_ganspace(pca[0], 6, (0, 3))
    with pytest.raises(IdgenError, match=r"shape \(1 or levels, dim\), not \[512\]"):
        LinearDirection(torch.ones(DIM))


class Exploit:
    def __reduce__(self):
        return print, ("opened",)


def write_bad(path, kind):
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Exploit()))
    elif kind == "objects":
        np.save(path, np.array([Exploit()], dtype=object), allow_pickle=True)
    elif kind == "claims too much":
        with open(path, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 512)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(64))
    elif kind == "several":
        with open(path, "wb") as file:
            np.savez(file, a=np.ones(3), b=np.ones(3))
    elif kind == "nan":
        np.save(path, np.full((18, 512), np.nan, np.float32))
    elif kind == "texts":
        np.save(path, np.array([["a"]]))
    elif kind == "three dimensions":
        np.save(path, np.ones((2, 18, 512), np.float32))
    elif kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "kind",
    ["missing", "empty", "pickle", "objects", "claims too much", "several", "nan", "texts", "three dimensions"],
)
def test_bad_npy_files_are_refused_in_one_line_and_run_nothing(tmp_path, capsys, kind):
    path = tmp_path / "direction.npy"
    write_bad(path, kind)
    with pytest.raises(IdgenError, match=r"direction\.npy") as refusal:
        load_latent_direction(path)
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_bad_pt_files_are_refused(tmp_path, capsys):
    path = tmp_path / "smile.pt"
    path.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(IdgenError, match="would run code"):
        load_interfacegan(path)
    assert capsys.readouterr().out == ""
    torch.save({"a": torch.ones(1, DIM), "b": torch.ones(1, DIM)}, path)
    with pytest.raises(IdgenError, match="holds 2 tensors"):
        load_interfacegan(path)
    torch.save(torch.ones(3, 4, DIM), path)
    with pytest.raises(IdgenError, match=r"holds the shape \[3, 4, 512\]"):
        load_interfacegan(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"comp": None}, "the tensor 'comp' is missing"),
        ({"mean": None}, "do not fit 6 components of 512 values"),
        ({"std": torch.ones(5)}, "do not fit 6 components of 512 values"),
        ({"comp": torch.ones(6, DIM)}, "expected 3 dimensions"),
    ],
)
def test_incomplete_ganspace_files_are_refused(pca, change, words):
    path, tensors = pca
    torch.save({key: tensor for key, tensor in {**tensors, **change}.items() if tensor is not None}, path)
    with pytest.raises(IdgenError, match=words):
        load_ganspace(path, 0, (0, 3))


def test_named_edits_are_read_from_the_published_table(tmp_path, pca):
    path = tmp_path / "ganspace_configs.csv"
    path.write_text("lipstick\t34\t10\t11\t20\ndisgusted\t43\t6\t8\t-30\n\n")
    edits = read_ganspace_edits(path)
    assert edits == {"lipstick": GanspaceEdit(34, (10, 11), 20.0), "disgusted": GanspaceEdit(43, (6, 8), -30.0)}
    edit = edits["lipstick"]
    assert isinstance(load_ganspace(pca[0], edit.component % COMPONENTS, edit.levels), ComponentDirection)
    for text in ("lipstick\t34\t10\n", "lipstick\tx\t10\t11\t20\n"):
        path.write_text(text)
        with pytest.raises(IdgenError, match="is not a list of GANSpace edits"):
            read_ganspace_edits(path)
    with pytest.raises(IdgenError, match="cannot read"):
        read_ganspace_edits(tmp_path / "none.csv")
