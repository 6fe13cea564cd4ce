"""The W+ Adapter's projector: which levels reach which token, and which weights it takes."""

import pytest
import torch

from idgen.adapters.wplus.mapping import WPlusProjector
from idgen.errors import IdgenError


def test_each_token_sees_its_own_levels():
    projector, w = WPlusProjector(24).requires_grad_(False), torch.randn(2, 18, 512)
    before = projector(w)
    for token, levels in enumerate(((0, 4), (4, 8), (8, 12), (12, 18))):
        for level in (levels[0], levels[1] - 1):
            changed = w.clone()
            changed[:, level] += 1
            moved = (projector(changed) - before).abs().amax((0, 2)) > 1e-4
            assert moved.tolist() == [index == token for index in range(4)]


def test_the_published_projector_has_the_published_layout():
    state = WPlusProjector().state_dict()
    published = {f"proj_{index}.weight": (768, 3072 if index == 3 else 2048) for index in range(4)}
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        **published,
        "norm.weight": (768,),
        "norm.bias": (768,),
    }


def test_projector_sizes_are_read_off_the_weights():
    state = WPlusProjector(24, groups=(2, 3), style_dim=16).state_dict()
    sizes = WPlusProjector.sizes(state, "test", style_dim=16)
    assert sizes == {"cross_attention_dim": 24, "groups": (2, 3), "style_dim": 16}
    with pytest.raises(IdgenError, match=r"test: projections of \[32, 48\] values do not fit codes of 512"):
        WPlusProjector.sizes(state, "test")
    with pytest.raises(IdgenError, match=r"the tensor 'proj_0\.weight' is missing"):
        WPlusProjector.sizes({}, "test")
    with pytest.raises(IdgenError, match=r"codes of the shape \(batch, 5, 16\), not \[1, 18, 512\]"):
        WPlusProjector(**sizes)(torch.zeros(1, 18, 512))
