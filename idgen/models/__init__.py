"""Networks that are nobody's adapter: recognisers, detectors and, later, whole generators."""
