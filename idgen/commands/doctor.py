"""`idgen doctor`: what this machine and this installation can do, what is missing, and how to get it."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "say which versions, devices and weights are here, what is missing and how to get it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Report on the installation."""
    return {}
