"""The few ways into a diffusion model that all methods share."""
