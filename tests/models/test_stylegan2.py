"""StyleGAN2's generator against slow formulas that share no code with it."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from idgen.checkpoint import load_strict
from idgen.errors import IdgenError
from idgen.models.stylegan2 import EqualLinear, Generator, ModulatedConv2d, stylegan2_widths, upfirdn2d

WIDTHS, DIM = (8, 8, 6, 4), 12  # 32 pixels, 8 levels


@pytest.fixture(scope="module")
def generator():
    """Random weights in which nothing is zero: fresh noise strengths and biases would hide their part."""
    torch.manual_seed(0)
    network = Generator(WIDTHS, DIM, mapping_layers=2)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "noise.weight")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return network.requires_grad_(False)


@pytest.mark.parametrize("up", [1, 2, 3])
@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("pad", [(0, 0), (2, 1), (1, 1), (3, -1), (-1, 0)])
def test_upfirdn2d_equals_a_loop_over_pixels(up, down, pad):
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 3, 5, 7, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    got = upfirdn2d(x, kernel, up, down, pad).numpy()
    for sample, channel in np.ndindex(2, 3):
        wanted = slow_upfirdn2d(x[sample, channel].numpy(), kernel.numpy(), up, down, pad)
        np.testing.assert_allclose(got[sample, channel], wanted, atol=1e-12)


def slow_upfirdn2d(x, kernel, up, down, pad):
    sparse = np.zeros([side * up for side in x.shape])
    for row, column in np.ndindex(*x.shape):
        sparse[row * up, column * up] = x[row, column]
    before, after = pad
    size = [side + before + after for side in sparse.shape]
    padded = np.zeros(size)
    for row, column in np.ndindex(*size):
        if 0 <= row - before < sparse.shape[0] and 0 <= column - before < sparse.shape[1]:
            padded[row, column] = sparse[row - before, column - before]
    return scipy.signal.convolve2d(padded, kernel, mode="valid")[::down, ::down]


def test_upfirdn2d_of_a_separable_filter_equals_scipys_on_each_axis():
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    taps = np.array([1.0, 2.0, 4.0, 3.0])
    got = upfirdn2d(x, torch.from_numpy(np.outer(taps, taps)), up=2, down=3, pad=(3, 3))[0, 0].numpy()
    wanted = x[0, 0].numpy()
    for axis in (0, 1):
        wanted = scipy.signal.upfirdn(taps, wanted, up=2, down=3, axis=axis)
    # scipy drops the zeros behind the last pixel that we filter too
    np.testing.assert_allclose(got[: wanted.shape[0], : wanted.shape[1]], wanted, atol=1e-12)


def slow_modulated(conv, features, code):
    """One sample, one output value at a time, on weights that the style has scaled and demodulation has divided."""
    style = [
        sum(weight * value for weight, value in zip(row, code.tolist(), strict=True)) / math.sqrt(len(row)) + bias
        for row, bias in zip(conv.modulation.weight.tolist(), conv.modulation.bias.tolist(), strict=True)
    ]
    weight = conv.weight[0].double().numpy().copy()
    weight /= math.sqrt(weight[0].size)
    for channel, scale in enumerate(style):
        weight[:, channel] *= scale
    if conv.demodulate:
        for row in weight:
            row /= math.sqrt((row**2).sum() + 1e-8)
    features = features.double().numpy()
    if conv.blur is not None:  # zeros between the pixels, then the kernel, then the filter; borders kept for both
        sparse = np.zeros((features.shape[0], features.shape[1] * 2, features.shape[2] * 2))
        sparse[:, ::2, ::2] = features
        out = [sum(scipy.signal.convolve2d(c, k) for c, k in zip(sparse, row, strict=True)) for row in weight]
        taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
        return np.stack([scipy.signal.convolve2d(one, taps)[2:-3, 2:-3] for one in out])
    return np.stack(
        [sum(scipy.signal.correlate2d(c, k, "same") for c, k in zip(features, row, strict=True)) for row in weight]
    )


@pytest.mark.parametrize(
    ("side", "options"),
    [(3, {}), (3, {"upsample": True}), (1, {"demodulate": False}), (3, {"demodulate": False, "upsample": True})],
)
def test_a_modulated_convolution_equals_scaled_weights_for_each_sample(side, options):
    torch.manual_seed(1)
    conv = ModulatedConv2d(5, 4, side, DIM, **options).requires_grad_(False)
    conv.modulation.bias += 0.5 * torch.randn(5)
    x, w = torch.randn(3, 5, 6, 6), torch.randn(3, DIM)
    got = conv(x, w).numpy()
    for sample in range(3):
        np.testing.assert_allclose(got[sample], slow_modulated(conv, x[sample], w[sample]), atol=2e-5)


def test_a_picture_equals_the_sum_of_its_levels_by_the_slow_formulas(generator):
    torch.manual_seed(2)
    w = torch.randn(1, generator.n_latent, DIM)
    state = generator.state_dict()

    def styled(prefix, conv, features, code, noise):
        out = torch.from_numpy(slow_modulated(conv, features, code)).float()
        out += state[f"{prefix}.noise.weight"] * state[f"noises.noise_{noise}"][0]
        out += state[f"{prefix}.activate.bias"][:, None, None]
        return torch.where(out > 0, out, 0.2 * out) * math.sqrt(2)

    def rgb(prefix, module, features, code):
        return torch.from_numpy(slow_modulated(module.conv, features, code)) + state[f"{prefix}.bias"][0]

    features = styled("conv1", generator.conv1.conv, state["input.input"][0], w[0, 0], 0)
    picture = rgb("to_rgb1", generator.to_rgb1, features, w[0, 1])
    for index, conv in enumerate(generator.convs):
        features = styled(f"convs.{index}", conv.conv, features, w[0, 1 + index], 1 + index)
        if index % 2:
            level = index // 2
            larger = [slow_upfirdn2d(one, np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16, 2, 1, (2, 1)) for one in picture]
            own = rgb(f"to_rgbs.{level}", generator.to_rgbs[level], features, w[0, 2 + index])
            picture = own + torch.from_numpy(np.stack(larger))
    assert picture.shape == (3, 32, 32)
    np.testing.assert_allclose(generator(w)[0].numpy(), picture.numpy(), atol=2e-4)


def test_the_mapping_network_equals_its_formula(generator):
    z = torch.randn(3, DIM)
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for index in (1, 2):
        layer = generator.style[index]
        x = x @ layer.weight.T * (0.01 / math.sqrt(DIM)) + 0.01 * layer.bias
        x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
    torch.testing.assert_close(generator.map(z), x)


def test_fresh_layers_keep_the_variance():
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    for layer in (EqualLinear(256, 256), EqualLinear(256, 256, rate=0.01, activate=True)):
        assert layer(x).std().item() == pytest.approx(1, abs=0.2)


def test_samples_of_a_batch_do_not_touch_each_other(generator):
    w = torch.randn(3, generator.n_latent, DIM)
    alone = torch.cat([generator(one[None]) for one in w])
    torch.testing.assert_close(generator(w), alone, atol=1e-5, rtol=1e-5)


def test_each_level_of_the_code_changes_the_picture(generator):
    w = torch.randn(1, generator.n_latent, DIM).repeat(generator.n_latent + 1, 1, 1)
    for level in range(generator.n_latent):
        w[level, level] += 1
    pictures = generator(w)
    assert ((pictures[:-1] - pictures[-1]).abs().amax((1, 2, 3)) > 1e-3).all()


def test_gradients_reach_the_code_and_agree_with_differences():
    torch.manual_seed(0)
    network = Generator((4, 4), 3, mapping_layers=1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    w = torch.randn(2, network.n_latent, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (w,))
    network(w).square().sum().backward()
    unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert unused == {"style.1.weight", "style.1.bias"}


def test_stored_noise_repeats_and_new_noise_differs(generator):
    w = torch.randn(2, generator.n_latent, DIM)
    assert torch.equal(generator(w), generator(w))
    one, again = (generator(w, generator.random_noise(2, torch.Generator().manual_seed(3))) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, generator(w))
    noise = generator.random_noise(2)
    assert [tuple(picture.shape) for picture in noise[:4]] == [(2, 1, 4, 4), (2, 1, 8, 8), (2, 1, 8, 8), (2, 1, 16, 16)]


def test_codes_of_another_shape_are_refused(generator):
    for w in (torch.zeros(1, DIM), torch.zeros(1, 7, DIM), torch.zeros(1, 8, DIM + 1)):
        with pytest.raises(IdgenError, match=r"takes codes of the shape \(batch, 8, 12\)"):
            generator(w)


def test_sizes_are_read_off_the_weights(generator):
    state = generator.state_dict()
    sizes = Generator.sizes(state, "test")
    assert sizes == {"widths": WIDTHS, "style_dim": DIM, "mapping_layers": 2}
    load_strict(Generator(**sizes), state, "test")
    with pytest.raises(IdgenError, match=r"other: the tensor 'convs\.1\.conv\.weight' is missing"):
        Generator.sizes({"convs.0.bias": torch.ones(1), "convs.1.bias": torch.ones(1)}, "other")


def test_the_published_model_at_1024_pixels_has_the_published_layout():
    with torch.device("meta"):
        network = Generator()
    state = network.state_dict()
    assert (network.size, network.n_latent, len(state)) == (1024, 18, 171)
    assert sum(parameter.numel() for parameter in network.parameters()) == 30_370_060
    published = {
        "style.8.weight": (512, 512),
        "input.input": (1, 512, 4, 4),
        "conv1.conv.weight": (1, 512, 512, 3, 3),
        "conv1.conv.modulation.bias": (512,),
        "conv1.noise.weight": (1,),
        "conv1.activate.bias": (512,),
        "to_rgb1.bias": (1, 3, 1, 1),
        "convs.0.conv.blur.kernel": (4, 4),
        "convs.15.conv.weight": (1, 32, 32, 3, 3),
        "convs.15.conv.modulation.weight": (32, 512),
        "to_rgbs.7.conv.weight": (1, 3, 32, 1, 1),
        "to_rgbs.7.upsample.kernel": (4, 4),
        "noises.noise_0": (1, 1, 4, 4),
        "noises.noise_16": (1, 1, 1024, 1024),
    }
    assert {key: tuple(state[key].shape) for key in published} == published


@pytest.mark.parametrize(("size", "last"), [(8, 512), (64, 512), (256, 128), (1024, 32), (2048, 16)])
def test_widths_of_the_published_models(size, last):
    widths = stylegan2_widths(size)
    assert (widths[0], widths[-1], 2 << len(widths)) == (512, last, size)


@pytest.mark.parametrize("size", [0, 4, 100, -8])
def test_sides_that_are_no_power_of_two_are_refused(size):
    with pytest.raises(IdgenError, match=f"power of two from 8 on, not {size}"):
        stylegan2_widths(size)


def test_the_upsampled_picture_keeps_its_brightness(generator):
    flat = torch.ones(1, 3, 8, 8)
    inner = generator.to_rgbs[0].upsample(flat)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.ones_like(inner))
