"""How many references a person may have: too many, or none, is one clear error of every method, and the UNet is unchanged."""

from typing import Any

import pytest
import torch

from idgen.adapters.embeddings import MAX_REFERENCES
from idgen.errors import IdgenError
from tests.adapters.bases import call_arguments, predict, tiny_unet
from tests.adapters.cases import CASES, Case, identity, random_tensor

# Methods that take several photos of one person, and a person of so many. The others take one vector, code or set of tokens.
MANY = {
    "ip_faceid": lambda count: identity("w600k_r50", count)(0),
    "instantid": lambda count: identity("glintr100", count)(0),
    "pva": lambda count: identity("ms1mv3_r50", count)(0),
    "fact": lambda count: random_tensor(count, 9, 12)(0)[None],
    "cachekv": lambda count: random_tensor(1, count, 4, 8, 8)(0),
}
ONE = {"arc2face_expression", "arc2face_reference", "pulid", "wplus"}
ROUNDS = [pytest.param(case, id=case.method) for case in CASES if case.method in MANY and "sd15" in case.bases]


def test_every_method_is_accounted_for() -> None:
    assert {case.method for case in CASES} == set(MANY) | ONE


def conditioned(case: Case, adapter: Any, count: int) -> Any:
    with torch.no_grad():
        return adapter.condition(MANY[case.method](count), **case.inputs(1))


@pytest.mark.parametrize("case", ROUNDS)
def test_a_hundred_references_are_refused_and_as_many_as_make_sense_work(case: Case) -> None:
    unet = tiny_unet("sd15")
    arguments = call_arguments(unet, 2)
    before = predict(unet, arguments)
    adapter = case.build(unet).inject(unet)
    with pytest.raises(IdgenError, match=f"100 references given, at most {MAX_REFERENCES}") as error:
        conditioned(case, adapter, 100)
    assert "\n" not in str(error.value)
    assert torch.equal(predict(unet, arguments), before)
    most = predict(unet, arguments, conditioned(case, adapter, MAX_REFERENCES))
    assert most.isfinite().all() and not torch.allclose(most, before, atol=1e-4)


@pytest.mark.parametrize("case", ROUNDS)
def test_nobody_is_refused(case: Case) -> None:
    unet = tiny_unet("sd15")
    arguments = call_arguments(unet, 2)
    before = predict(unet, arguments)
    adapter = case.build(unet).inject(unet)
    nobody: list[Any] = [[]]
    if case.method in ("fact", "cachekv"):  # an Identity without references can not be made
        nobody.append(MANY[case.method](0))
    for person in nobody:
        with pytest.raises(IdgenError, match=r"no identity given|\(.*references, ") as error:
            adapter.condition(person, **case.inputs(1))
        assert "\n" not in str(error.value) and torch.equal(predict(unet, arguments), before)


@pytest.mark.parametrize("recogniser", ["w600k_r50", "mini"])
def test_an_identity_has_a_reference(recogniser: str) -> None:
    with pytest.raises(IdgenError, match=r"\(references, d\), got \[0, 512\]"):
        identity(recogniser, 0)(0)
