"""PVA's transform network and crop: independence of order, gradients, and what is refused."""

import pytest
import torch

from idgen.adapters.pva.transform import TransformNetwork, face_crop
from idgen.errors import IdgenError

SIZES = {"in_dim": 12, "out_dim": 16, "num_q_token": 3, "num_layer": 2, "feedforward": 24}


def test_any_number_of_references_in_any_order():
    torch.manual_seed(0)
    network = TransformNetwork(**SIZES).eval()
    faces = 20 * torch.randn(2, 5, 12)
    with torch.no_grad():
        tokens = network(faces)
        assert tokens.shape == (2, 3, 16)
        torch.testing.assert_close(network(faces.flip(1)), tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(network(faces[:1]), tokens[:1], atol=1e-5, rtol=1e-5)
        assert (network(faces[:, :1]) - tokens).abs().max() > 1e-3


def test_inference_equals_the_training_code_without_dropout():
    network = TransformNetwork(**SIZES, dropout=0.0)
    faces = torch.randn(2, 4, 12)
    trained = network.train()(faces)  # torch's plain path; in eval mode it takes a fused one
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(faces), trained, atol=1e-5, rtol=1e-5)


def test_gradients_reach_references_queries_and_positions():
    network = TransformNetwork(**SIZES)
    faces = torch.randn(2, 4, 12, requires_grad=True)
    (network(faces) * torch.randn(2, 3, 16)).sum().backward()
    assert (faces.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_sizes_are_read_off_the_weights():
    state = TransformNetwork(**SIZES).state_dict()
    assert TransformNetwork.sizes(state, "test") == SIZES
    with pytest.raises(IdgenError, match="a file: the tensor 'q_tokens' is missing"):
        TransformNetwork.sizes({key: value for key, value in state.items() if key != "q_tokens"}, "a file")


@pytest.mark.parametrize("size", [(256, 256), (128, 128), (300, 200), (512, 512)])
def test_the_crop_is_where_the_portrait_has_its_face(size):
    picture = torch.zeros(1, 3, *size)
    row, column = round((35 + 94) / 255 * (size[0] - 1)), round((32 + 94) / 255 * (size[1] - 1))
    picture[..., row - 3 : row + 4, column - 3 : column + 4] = 1  # in the middle of the region that is cut out
    crop = face_crop(picture)
    assert crop.shape == (1, 3, 112, 112)
    weights = crop[0, 0] / crop[0, 0].sum()
    place = torch.arange(112.0)
    assert abs(weights.sum(1) @ place - 55.5) < 1.5 and abs(weights.sum(0) @ place - 55.5) < 1.5
    assert crop[..., :20, :].max() == 0 and crop[..., :, :20].max() == 0
