"""One random pipeline per test: fast to build, the same weights each time."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging

from idgen.pipelines import Arc2FacePipeline
from tests.tiny import tiny_components, tiny_root

logging.set_verbosity_error()


def make_pipe(**overrides):
    pipe = Arc2FacePipeline(**tiny_components() | {"recogniser": "mini"} | overrides)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_kl():
    """Stable Diffusion's class of autoencoder, eightfold, for 8 latent channels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=8,
        norm_num_groups=4,
    ).eval()


@pytest.fixture
def pipe():
    return make_pipe()


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A folder in the mini family's layout."""
    return tiny_root(tmp_path_factory.mktemp("mini"))


@pytest.fixture
def mini(root, monkeypatch):
    monkeypatch.setenv("IDGEN_MINI", str(root))
    return root


@pytest.fixture
def faces():
    """Raw embeddings (3, 512) of three people, of the lengths that ArcFace models give."""
    return 20 * torch.nn.functional.normalize(torch.randn(3, 512, generator=torch.Generator().manual_seed(7)), dim=-1)
