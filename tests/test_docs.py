"""What the documentation shows, works; what is generated, is current."""

import re
import sys
import types
from pathlib import Path

import pytest

from idgen.adapters import registry
from tests.adapters import test_contract as contract
from tests.adapters.bases import WIDTH
from tests.adapters.cases import Case, identity
from tools.methods_page import PAGE, page

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_methods_is_current():
    assert PAGE.read_text() == page(), "run: python tools/methods_page.py"


@pytest.fixture
def toy(monkeypatch):
    """The method of docs/adding-a-method.md, registered as the page says."""
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "adding-a-method.md").read_text(), re.DOTALL)
    module = types.ModuleType("toy_method")
    monkeypatch.setitem(sys.modules, "toy_method", module)
    exec(compile(code, "docs/adding-a-method.md", "exec"), module.__dict__)
    monkeypatch.setitem(registry.FOLDERS, "toy", "toy_method")
    return Case("toy", module.ToyConfig(width=WIDTH), identity("mini"))


@pytest.mark.parametrize(
    "promise",
    [
        contract.test_constructing_changes_nothing,
        contract.test_eject_restores_the_unet_bit_for_bit_twice,
        contract.test_scale_zero_is_the_base_bit_for_bit_and_scale_acts,
        contract.test_a_mask_acts_where_it_is_white,
        contract.test_a_batch_of_two_people_is_each_alone,
        contract.test_guidance_in_one_batch_equals_two_passes_and_none,
        contract.test_gradients_reach_the_adapter_and_nothing_else,
        contract.test_a_users_lora_stays_active,
    ],
    ids=lambda promise: promise.__name__,
)
@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_the_toy_adapter_of_the_docs_keeps_the_contract(toy, promise, base):
    promise(toy, base)
