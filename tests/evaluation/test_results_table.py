"""The Markdown of RESULTS."""

from tools.results_table import results_table


def test_evaluations_stand_side_by_side() -> None:
    one = {
        "metrics": {
            "id_score": {"title": "id_score", "value": 0.5, "low": 0.4, "high": 0.6, "beside": {"a stranger": 0.0}}
        }
    }
    four = {
        "metrics": {
            "id_score": {"title": "id_score", "value": 0.75},
            "kid": {"title": "kernel distance", "value": 0.01},
        }
    }
    lines = results_table([one, four], ["one", "four"]).splitlines()
    assert lines[0] == "| | one | four | beside it |"
    assert lines[2] == "| id_score | 0.500 [0.400, 0.600] | 0.75 | a stranger 0.000 |"
    assert lines[3] == "| kernel distance | not run | 0.01 |  |"
