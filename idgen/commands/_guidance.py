"""The flags of the commands whose sampling a recogniser or a reader of words can guide."""

from __future__ import annotations

import argparse
import math


def add_identity_guidance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--identity-guidance",
        type=_strength,
        metavar="STRENGTH",
        help="how strongly what the recogniser sees guides the later steps; 0 not at all (default: 0.01 with mini, else 0)",
    )


def identity_guidance(args: argparse.Namespace) -> float:
    """As asked for; by default only with the weights for which the strength was chosen."""
    from idgen.rewards.ascent import STRENGTH

    if args.identity_guidance is not None:
        return args.identity_guidance
    return STRENGTH if args.model == "mini" else 0.0


def add_words_guidance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--words-guidance",
        type=_strength,
        metavar="STRENGTH",
        help="how strongly a reader guides the steps to what the prompt names; 0 not at all (default: 0.03 with mini, else 0)",
    )


def words_guidance(args: argparse.Namespace) -> float:
    """As asked for; by default only with the family whose pictures the reader knows."""
    from idgen.rewards.ascent import WORDS_STRENGTH

    if args.words_guidance is not None:
        return args.words_guidance
    return WORDS_STRENGTH if args.model == "mini" else 0.0


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
