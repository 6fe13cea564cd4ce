"""Losses: margins for recognisers, weights for diffusion, identity."""
