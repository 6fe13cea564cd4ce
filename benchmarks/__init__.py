"""What is measured, runnable by anyone from a checkout: `python -m benchmarks.<name> --help`.

Every benchmark renders its own held-out synthetic people, prints a markdown table on stdout and, with `--json FILE`,
writes the numbers; `--cache DIR` keeps rendered photos between runs.
"""
