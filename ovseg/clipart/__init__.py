"""The embedded clip-art world: drawn scenes, captions, and models trained on them."""
