"""What the documentation shows, works; what is generated, is current."""

import ast
import re
import shutil
import sys
import types
from pathlib import Path

import pytest

from idgen.adapters import registry
from tests.adapters import test_contract as contract
from tests.adapters.bases import WIDTH
from tests.adapters.cases import Case, identity
from tools.methods_page import PAGE, page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])


def python_blocks(file: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)


def test_the_page_of_methods_is_current():
    assert PAGE.read_text() == page(), "run: python tools/methods_page.py"


@pytest.mark.parametrize("file", [file for file in PAGES if python_blocks(file)], ids=lambda file: file.stem)
def test_what_the_docs_import_is_there(file):
    for code in python_blocks(file):
        imports = [node for node in ast.parse(code).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), str(file), "exec"), {})


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The photos of the docs in the working folder: PNG under their names, as a photo is told by its content."""
    monkeypatch.chdir(tmp_path)
    people = {"anna1": (900007, 1), "anna2": (900007, 2), "photo": (900007, 3), "both": (900007, 4), "ben": (900011, 1)}
    for name, (person, number) in people.items():
        shutil.copy(ROOT / "examples" / f"person_{person}" / f"{number}.png", f"{name}.jpg")


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("page", "made"), [("README.md", "images"), ("docs/inpainting.md", "filled"), ("docs/restoration.md", "restored")]
)
def test_the_first_example_of_a_page_runs_as_it_stands(page, made):
    code = python_blocks(ROOT / page)[0]
    names = {}
    exec(compile(re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", code), page, "exec"), names)
    written = re.findall(r"\.save\(\"(.+?)\"\)", code)
    assert written and all(Path(file).stat().st_size > 0 for file in written)
    assert len(names[made]) == 4 if made == "images" else names[made].image.size == (128, 128)


@pytest.mark.usefixtures("photos")
def test_the_reward_of_the_docs_has_a_gradient():
    names = {}
    exec(compile(python_blocks(DOCS / "rewards.md")[0], "docs/rewards.md", "exec"), names)
    names["loss"].backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in names["policy"].parameters())


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_files_and_sections_that_the_docs_link_to_are_there(file):
    for link, section in re.findall(
        r"\]\(([^)#:]*)#?([^):]*)\)", re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
    ):
        target = file.parent / link if link else file
        assert target.exists(), f"{file.name} links to {link}"
        assert not section or section in sections(target), f"{file.name} links to {link}#{section}"


def sections(file: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def toy(monkeypatch):
    """The method of docs/adding-a-method.md, registered as the page says."""
    (code,) = python_blocks(DOCS / "adding-a-method.md")
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
