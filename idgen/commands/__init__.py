"""One module per sub-command of `idgen`; the command line finds them here by name.

Each has `HELP` (one line, a plain string), `add_arguments(parser)` and `run(args) -> dict`; the dict is what `--json` prints,
and text for people goes through `idgen.console.say`. Heavy imports belong inside `run`: `--help` must stay quick.
"""
