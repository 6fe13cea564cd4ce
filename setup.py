"""The package list: four folders of the checkout installed under one name (everything else is in pyproject.toml)."""

from setuptools import find_packages, setup

ROOTS = {
    "idgen": "idgen",
    "idgen.pipelines": "pipelines",
    "idgen.train": "train",
    "idgen.configs": "configs",
}

# Found, not listed: a hand-written list silently drops a new sub-package from the wheel.
packages = [
    name
    for package, folder in ROOTS.items()
    for name in (package, *(f"{package}.{sub}" for sub in find_packages(folder)))
]

setup(
    packages=packages,
    package_dir=ROOTS,
    package_data={"idgen": ["py.typed", "assets/**/*"], "idgen.configs": ["**/*.yaml"]},
)
