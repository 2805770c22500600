"""An annotator's masks, drawn to the edges of the image by a guided filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ovseg.annotators.base import Annotator, AroundAnnotator
from ovseg.structures import Annotation, DiffusionSample


class GuidedAnnotator(AroundAnnotator):
    """Filter another annotator's soft masks, guided by the image (He et al., ECCV 2010).

    A mask becomes, in every window, the linear function of the image's colours that is nearest to
    it: its edges move to those of the image. For masks that are coarser than the image, as a
    grounding module's are; needs kornia. Scores and found are the annotator's; which instance a
    pixel belongs to is not kept, for other pixels are in the masks.

    Args:
        annotator: Whose masks they are.
        radius: Pixels from the middle of a window to its side: about the width of a soft edge.
        eps: Variance of colour, of channels in [0, 1], below which a window is flat and its mask
            is only blurred.

    Raises:
        ImportError: If kornia is missing.
        ValueError: If radius or eps is not positive.
    """

    def __init__(self, annotator: Annotator, radius: int = 4, eps: float = 1e-3) -> None:
        super().__init__(annotator)
        if radius < 1 or eps <= 0:
            raise ValueError(f"radius must be >= 1 and eps > 0, got {radius} and {eps}")
        _guided_blur()  # that it is missing is told now
        self.radius, self.eps = radius, eps

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return the annotation, its masks filtered.

        Raises:
            ValueError: If a window is larger than the image.
        """
        annotation = self.annotator.annotate(sample)
        masks = follow_edges(annotation.masks, sample.images, self.radius, self.eps)
        return replace(annotation, masks=masks, instances=None)

    def describe(self) -> dict:
        """Return JSON-ready facts: the annotator's, and what was done to its masks."""
        facts = self.annotator.describe()
        return {
            **facts,
            "source": f"{facts['source']}, filtered along the image's edges",
            "digest": f"{facts['digest']}+guided {self.radius} {self.eps}",
            "guided": {"radius": self.radius, "eps": self.eps},
        }


def follow_edges(masks: Tensor, images: Tensor, radius: int = 4, eps: float = 1e-3) -> Tensor:
    """Filter masks ``(B, K, H, W)`` in [0, 1], guided by images ``(B, 3, H, W)`` uint8 RGB.

    Args:
        masks: Soft masks.
        images: The guide.
        radius: See `GuidedAnnotator`.
        eps: See `GuidedAnnotator`.

    Raises:
        ValueError: If a window is larger than the image.
    """
    window = 2 * radius + 1
    if min(masks.shape[-2:]) < window:
        size = " x ".join(map(str, masks.shape[-2:]))
        raise ValueError(
            f"a window of {window} pixels does not fit into images of {size}: take a smaller "
            f"radius than {radius}"
        )
    if masks.shape[1] == 0:
        return masks
    colours = images.to(masks.device).float() / 255
    filtered = _guided_blur()(colours, masks.float(), window, eps, separable=True)
    return filtered.clamp(0, 1).to(masks.dtype)


def _guided_blur() -> Callable[..., Tensor]:
    try:
        from kornia.filters import guided_blur
    except ImportError as error:
        raise ImportError(
            f"masks follow the edges of an image by kornia ({error}): pip install 'ovseg[guided]'"
        ) from None
    return guided_blur
