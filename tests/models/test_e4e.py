"""Encoder4Editing against its definition in functions of the published keys, and through its published file."""

import argparse

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from idgen.errors import IdgenError
from idgen.models.e4e import E4E, Encoder4Editing, from_state, load_e4e
from idgen.models.stylegan2 import Generator

WIDTHS, DIM, SIZE = (16, 32, 32, 48), 12, 64
GENERATOR = ((8, 8, 6, 4), DIM, 2)  # 32 pixels, 8 levels


@pytest.fixture(scope="module")
def e4e():
    """Random weights and statistics; nothing is zero or one."""
    torch.manual_seed(0)
    model = E4E(Encoder4Editing(WIDTHS, DIM, styles=8, size=SIZE), Generator(*GENERATOR)).eval().requires_grad_(False)
    model.latent_avg.normal_()
    for name, tensor in model.encoder.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith(("bias", "running_mean")):
            tensor.normal_(std=0.2)
    return model


def faces(batch=2, size=SIZE):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def slow_codes(state, x, styles):
    """The encoder by its published keys, for 24 blocks in stages of 3, 4, 14 and 3."""

    def norm(x, key):
        mean, var, weight, bias = (state[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        scale = weight / (var + 1e-5).sqrt()
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    def prelu(x, key):
        return torch.where(x > 0, x, x * state[f"{key}.weight"][:, None, None])

    x = prelu(norm(F.conv2d(x, state["input_layer.0.weight"], padding=1), "input_layer.1"), "input_layer.2")
    ends = []
    for index in range(24):
        key = f"body.{index}"
        stride = 2 if index in (0, 3, 7, 21) else 1
        skip = x[:, :, ::stride, ::stride]
        if f"{key}.shortcut_layer.0.weight" in state:
            skip = norm(F.conv2d(skip, state[f"{key}.shortcut_layer.0.weight"]), f"{key}.shortcut_layer.1")
        x = F.conv2d(norm(x, f"{key}.res_layer.0"), state[f"{key}.res_layer.1.weight"], padding=1)
        x = F.conv2d(prelu(x, f"{key}.res_layer.2"), state[f"{key}.res_layer.3.weight"], stride=stride, padding=1)
        x = norm(x, f"{key}.res_layer.4")
        gate = F.relu(
            torch.einsum("bchw,oc->bo", x / x[0, 0].numel(), state[f"{key}.res_layer.5.fc1.weight"][..., 0, 0])
        )
        gate = torch.sigmoid(gate @ state[f"{key}.res_layer.5.fc2.weight"][..., 0, 0].T)
        x = x * gate[:, :, None, None] + skip
        ends.append(x)

    def level(features, index):
        count = features.shape[-1].bit_length() - 1
        for layer in range(count):
            key = f"styles.{index}.convs.{2 * layer}"
            out = F.conv2d(features, state[f"{key}.weight"], state[f"{key}.bias"], stride=2, padding=1)
            features = torch.where(out > 0, out, 0.01 * out)
        weight, bias = state[f"styles.{index}.linear.weight"], state[f"styles.{index}.linear.bias"]
        return features[..., 0, 0] @ weight.T / weight.shape[1] ** 0.5 + bias

    def lateral(features, name):
        return F.conv2d(features, state[f"{name}.weight"], state[f"{name}.bias"])

    def twice(features):  # bilinear, corners on corners
        side = features.shape[-1]
        places = torch.arange(2 * side) * (side - 1) / (2 * side - 1)
        matrix = (1 - (places[:, None] - torch.arange(side)).abs()).clamp_min(0)
        return matrix @ features @ matrix.T

    coarse = ends[23]
    middle = twice(coarse) + lateral(ends[20], "latlayer1")
    fine = twice(middle) + lateral(ends[6], "latlayer2")
    codes = [level(coarse, 0)]
    for index in range(1, styles):
        codes.append(codes[0] + level(coarse if index < 3 else middle if index < 7 else fine, index))
    return torch.stack(codes, dim=1)


def test_codes_equal_the_definition(e4e):
    got = e4e.encoder(faces())
    assert got.shape == (2, 8, DIM)
    torch.testing.assert_close(got, slow_codes(e4e.encoder.state_dict(), faces(), 8), atol=2e-5, rtol=1e-4)


def test_codes_begin_at_the_average(e4e):
    assert torch.equal(e4e(faces()), e4e.encoder(faces()) + e4e.latent_avg)


def test_the_first_level_moves_all_and_each_other_only_its_own(e4e):
    before = e4e.encoder(faces())
    for level in (0, 2, 3, 7):
        bias = e4e.encoder.styles[level].linear.bias
        bias += 1
        moved = e4e.encoder(faces()) - before
        bias -= 1
        expected = torch.zeros_like(before)
        expected[:, range(8) if level == 0 else [level]] = 1
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_gradients_of_a_picture_reach_the_face(e4e):
    picture = faces(1).requires_grad_()
    e4e.decoder(e4e(picture)).square().sum().backward()
    assert picture.grad.abs().sum() > 0


@pytest.mark.parametrize("options", ["none", "dict", "Namespace", "safetensors"])
def test_every_container_gives_the_same_codes(e4e, tmp_path, options):
    weights = {key: tensor for key, tensor in e4e.state_dict().items() if key != "latent_avg"}
    path = tmp_path / ("e4e.safetensors" if options == "safetensors" else "e4e_ffhq_encode.pt")
    if options == "safetensors":
        save_file(e4e.state_dict(), path)
    else:
        values = {"stylegan_size": 32, "device": "cuda:0", "checkpoint_path": None, "progressive_steps": [0, 20000]}
        kinds = {"none": {}, "dict": {"opts": values}, "Namespace": {"opts": argparse.Namespace(**values)}}
        torch.save({"state_dict": weights, "latent_avg": e4e.latent_avg, **kinds[options]}, path)

    loaded = load_e4e(path)

    assert not loaded.training
    with torch.no_grad():
        w = loaded(faces())
        assert torch.equal(w, e4e(faces()))
        assert torch.equal(loaded.decoder(w), e4e.decoder(w))


def test_weights_in_half_precision_become_float32(e4e):
    state = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in e4e.state_dict().items()}
    assert {tensor.dtype for tensor in from_state(state, "test").parameters()} == {torch.float32}


def test_other_and_incomplete_weights_are_refused_by_name(e4e):
    state = e4e.state_dict()
    with pytest.raises(IdgenError, match=r"the encoder of test: the tensor 'styles\.0\.linear\.weight' is missing"):
        from_state({"conv.weight": torch.ones(1)}, "test")
    for change, words in (
        ({"latent_avg": None}, "1 missing: latent_avg"),
        ({"latent_avg": torch.ones(1, DIM)}, rf"1 misshapen: latent_avg \[1, {DIM}\] instead of \[8, {DIM}\]"),
        ({"encoder.latlayer2.bias": None}, r"1 missing: encoder\.latlayer2\.bias"),
        ({"decoder.noises.noise_9": torch.ones(1)}, r"1 unexpected: decoder\.noises\.noise_9"),
        ({"head.weight": torch.ones(1)}, r"1 unexpected: head\.weight"),
    ):
        changed = {key: tensor for key, tensor in {**state, **change}.items() if tensor is not None}
        with pytest.raises(IdgenError, match=words):
            from_state(changed, "test")


def test_faces_of_another_size_are_refused(e4e):
    for pictures in (faces(size=32), faces()[:, :1], faces()[0]):
        with pytest.raises(IdgenError, match=r"aligned faces of the shape \(batch, 3, 64, 64\)"):
            e4e(pictures)


def test_sizes_that_make_no_encoder_are_refused():
    for arguments in ({"widths": (16, 16)}, {"size": 100}, {"size": 16}):
        with pytest.raises(IdgenError, match="four stages"):
            Encoder4Editing(**arguments)
    with pytest.raises(IdgenError, match=r"codes of the shape \(6, 12\), its generator takes \(8, 12\)"):
        E4E(Encoder4Editing(WIDTHS, DIM, styles=6, size=SIZE), Generator(*GENERATOR))


def test_the_model_at_full_size_has_the_published_layout():
    with torch.device("meta"):
        encoder = Encoder4Editing()
    state = encoder.state_dict()
    assert len(state) == 621 and encoder.code == (18, 512)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 267_136_704
    published = {
        "input_layer.0.weight": (64, 3, 3, 3),
        "input_layer.2.weight": (64,),
        "body.0.res_layer.5.fc1.weight": (4, 64, 1, 1),
        "body.3.shortcut_layer.0.weight": (128, 64, 1, 1),
        "body.21.shortcut_layer.1.running_mean": (512,),
        "body.23.res_layer.3.weight": (512, 512, 3, 3),
        "styles.2.convs.6.weight": (512, 512, 3, 3),
        "styles.6.convs.8.weight": (512, 512, 3, 3),
        "styles.17.convs.10.bias": (512,),
        "styles.17.linear.weight": (512, 512),
        "latlayer1.weight": (512, 256, 1, 1),
        "latlayer2.weight": (512, 128, 1, 1),
    }
    assert {key: tuple(state[key].shape) for key in published} == published
    absent = ("body.0.shortcut_layer.0.weight", "styles.2.convs.8.weight", "styles.6.convs.10.weight")
    assert not any(key in state for key in absent)
    assert Encoder4Editing.sizes(state, "test") == {
        "widths": (64, 128, 256, 512),
        "style_dim": 512,
        "styles": 18,
        "size": 256,
    }
