"""Text-to-image models behind one contract, `DiffusionBackbone`."""
