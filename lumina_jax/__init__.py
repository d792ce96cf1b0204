"""Lumina-T2X in JAX: flow-based diffusion transformers from text to any modality."""

__version__ = "0.1.0"
