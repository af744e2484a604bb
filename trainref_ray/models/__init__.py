"""Backbones with one linear head, and the linear probe whose gradients are compared."""
