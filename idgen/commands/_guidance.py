"""The flags of the commands whose sampling a recogniser or a reader of words can guide."""

from __future__ import annotations

import argparse
import re
from typing import Any

from idgen.commands._numbers import share


def add_identity_guidance(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--identity-guidance", "how strongly what the recogniser sees guides the later steps", "0.01")


def identity_guidance(args: argparse.Namespace) -> float:
    """As asked for; by default only with the weights for which the strength was chosen."""
    from idgen.rewards.ascent import STRENGTH

    return _asked(args, args.identity_guidance, STRENGTH)


def add_words_guidance(parser: argparse.ArgumentParser, usual: str) -> None:
    _add(parser, "--words-guidance", "how strongly a reader guides the steps to what the prompt names", usual)


def words_guidance(args: argparse.Namespace, usual: float) -> float:
    """As asked for; by default only with the family whose pictures the reader knows."""
    return _asked(args, args.words_guidance, usual)


def unknown_words(args: argparse.Namespace, tokenizer: Any) -> list[str]:
    """A doubt about the prompt: the mini family's tokenizer spells what it was never taught."""
    if args.model != "mini" or args.prompt is None:
        return []
    words = dict.fromkeys(re.findall(r"[a-z]+", re.sub(r"<\w+>", " ", args.prompt.lower())))
    unknown = [word for word in words if len(tokenizer.tokenize(word)) > 1]
    known = "the mini family knows the words of portraits' captions only, and not"
    return [f"--prompt: {known} {', '.join(unknown)}"] if unknown else []


def _add(parser: argparse.ArgumentParser, flag: str, what: str, usual: str) -> None:
    text = f"{what}; 0 not at all (default: {usual} with mini, else 0)"
    parser.add_argument(flag, type=share, metavar="STRENGTH", help=text)


def _asked(args: argparse.Namespace, given: float | None, usual: float) -> float:
    if given is not None:
        return given
    return usual if args.model == "mini" else 0.0
