"""How identities reach a diffusion model: one folder per method, over a few shared injections."""
