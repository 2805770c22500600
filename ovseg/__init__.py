"""ovseg: text-to-image diffusion models as makers of labelled segmentation data."""

__version__ = "0.1.0"
__all__ = ["GroundedDiffusion", "__version__"]


def __getattr__(name: str):
    if name == "GroundedDiffusion":  # imported when asked for: `import ovseg` stays light
        from ovseg.pipeline import GroundedDiffusion

        return GroundedDiffusion
    raise AttributeError(f"module 'ovseg' has no attribute {name!r}")
