"""Rewards for identity and looks, and ways to let them train a diffusion model: see docs/rewards.md."""
