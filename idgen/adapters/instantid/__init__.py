"""InstantID (Wang et al., 2024, arXiv 2401.07519; github.com/InstantID/InstantID): a face as tokens, its pose as points."""
