"""Our grounding module: it asks the frozen denoiser where a name would look, and follows regions.

The module of Li et al. (`ovseg.grounders.fusion`) makes a mask out of the name's embedding alone,
so a name it was never taught is understood only by its likeness to those it was. Here most of what
a mask is made of does not depend on which name it is: the denoiser's own cross-attention, asked
for the name (as in DAAM, Tang et al., ACL 2023, arXiv 2210.04885, but layer by layer and head by
head, and for any name), and the likeness of pixels to the region that a first mask has marked
(prototypes, as in few-shot segmentation: Wang et al., PANet, ICCV 2019, arXiv 1908.06391).
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, dropout2d, group_norm, relu

from ovseg.grounders.base import Grounder, check_features
from ovseg.grounders.calibration import ProbeNorm
from ovseg.grounders.maps import MultiscaleProjection, groups_by_stride, resize
from ovseg.grounders.rivals import Judge, Rivals
from ovseg.structures import Entities, Features, FeatureSpec

LIMIT = 8.0
"""Where standardised answers of the probes are cut."""

MASK_FACTS = 5


class Block(nn.Module):
    """Two residual 3x3 convolutions behind group norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(gcd(8, width), width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(relu(norm(x)))
        return x


class Likeness(nn.Module):
    """Compare every pixel with a vector, by several learned scalar products."""

    def __init__(self, width_in: int, width: int, products: int) -> None:
        super().__init__()
        self.products = products
        self.net = nn.Sequential(
            nn.Linear(width_in, 64), nn.ReLU(), nn.Linear(64, products * width)
        )

    def forward(self, pixels: Tensor, vector: Tensor) -> Tensor:
        """Compare ``(B, C, h, w)`` with ``(B, K, D)``: ``(B, K, products, h, w)``."""
        weights = self.net(vector).unflatten(2, (self.products, -1))
        return torch.einsum("bchw,bkpc->bkphw", pixels, weights) / pixels.shape[1] ** 0.5


class ProbeGrounder(Grounder):
    """A small convolutional network per name, over probes, features and pooled prototypes.

    The probes' answers are standardised for each name (`ProbeNorm`), trained or not. Whether a name
    is in the picture at all is told by networks of their own, from how much higher they are inside
    its mask, and at their highest, than elsewhere and than for the names of the training
    (`Rivals`), and from how sure the mask is of itself: they see no embedding to learn by heart.

    The switches are there for the ablation: each takes one source of information away.

    Args:
        feature_spec: What the backbone's features look like.
        text_width: Width of the name embeddings.
        widths: Channels into which the taps of each stride are projected, coarsest first. Coarse
            maps tell classes apart; wide ones let the head learn the seen ones by heart.
        hidden: Channels of the network that is run for every name.
        evidence: Channels into which the probes are projected.
        products: Scalar products of pixels with a name or a prototype.
        text_dropout: Share of names that are hidden in training, so that the probes are learnt.
        dropout: Share of the merged map's channels that are hidden in training, so that masks do
            not hang on what single channels say of the seen classes.
        probes: Ask the backbone's cross-attention for the name; it must offer ``probes``.
        text: Compare pixels with the name's embedding.
        others: Show each name the mean evidence of the image's other names.
        prototypes: Compare pixels with the means inside and outside of a first mask.

    Raises:
        ValueError: If a number is out of range, the backbone has no probes, or nothing tells one
            name from another.
    """

    def __init__(
        self,
        feature_spec: FeatureSpec,
        text_width: int,
        widths: tuple[int, ...] = (32, 32, 48),
        hidden: int = 48,
        evidence: int = 16,
        products: int = 8,
        text_dropout: float = 0.3,
        dropout: float = 0.4,
        probes: bool = True,
        text: bool = True,
        others: bool = True,
        prototypes: bool = True,
    ) -> None:
        super().__init__(feature_spec, text_width)
        shares = (text_dropout, dropout)
        if min(*widths, hidden, evidence, products) < 1 or not all(0 <= p < 1 for p in shares):
            raise ValueError(
                f"sizes must be >= 1, text_dropout and dropout in [0, 1), got "
                f"widths={list(widths)}, {hidden=}, {evidence=}, {products=}, {text_dropout=}, "
                f"{dropout=}"
            )
        self.groups = groups_by_stride(feature_spec)
        strides = [feature_spec.taps[group[0]].stride for group in self.groups]
        if len(widths) != len(strides):
            raise ValueError(
                f"widths needs one number per stride of the taps, coarsest first: the strides are "
                f"{strides}, got widths {list(widths)}"
            )
        if probes and not feature_spec.probes:
            raise ValueError(
                "the backbone offers no probes: name cross-attention modules, e.g. "
                "UNetBackbone(probes=('up_blocks.1',)), or set the grounder's probes to false"
            )
        if not (probes or text):
            raise ValueError("probes and text are both off: nothing tells one name from another")
        self.stride, self.text_dropout, self.dropout = strides[-1], text_dropout, dropout
        per_map = feature_spec.steps * feature_spec.branches
        self.projections = nn.ModuleList(
            MultiscaleProjection([feature_spec.taps[tap].channels * per_map for tap in group], w)
            for group, w in zip(self.groups, widths, strict=True)
        )
        width = sum(widths)
        self.merge = Block(width)
        heads = [probe.channels * feature_spec.steps for probe in feature_spec.probes.values()]
        if probes:
            self.norms = nn.ModuleList(
                ProbeNorm(feature_spec.steps, probe.channels, probe.width)
                for probe in feature_spec.probes.values()
            )
        self.ask = MultiscaleProjection(heads, evidence) if probes else None
        self.learns_presence = probes
        if probes:
            self.judge = Judge(2 * sum(heads) + MASK_FACTS)
        self.text = Likeness(text_width, width, products) if text else None
        known = width + evidence * probes * (1 + others) + products * text
        self.others = others
        self.first = nn.Sequential(nn.Conv2d(known, hidden, 1), Block(hidden))
        self.first_mask = nn.Conv2d(hidden, 1, 1)
        self.prototypes = None
        if prototypes:
            self.prototypes = nn.ModuleList(Likeness(width, width, products) for _ in range(2))
            known = hidden + 2 * products
            self.second = nn.Sequential(nn.Conv2d(known, hidden, 1), Block(hidden))
            self.second_mask = nn.Conv2d(hidden, 1, 1)
        self.rivals = Rivals(heads, text_width) if probes else None

    def meet(self, text: Tensor) -> None:
        """Keep the names that it will be trained with: `presence` compares others with them."""
        if self.rivals is not None:
            self.rivals.meet(text)

    def read(self, features: Features) -> Features:
        """Merge the taps; in training, let the norms see the probes."""
        merged = self.pixels(features)
        if self.training and self.ask is not None:
            for name, norm in zip(self.feature_spec.probes, self.norms, strict=True):
                norm.update(features.probes[name])
        return replace(features, merged=merged)

    def pixels(self, features: Features) -> Tensor:
        """Merge the taps into one map ``(B, sum of widths, h, w)`` of the finest one's size."""
        check_features(self.feature_spec, features)
        size = features.maps[self.groups[-1][0]].shape[-2:]
        parts = [
            project([group_norm(features.maps[tap].flatten(1, 3), 1) for tap in group], size)
            for group, project in zip(self.groups, self.projections, strict=True)
        ]
        return dropout2d(self.merge(torch.cat(parts, dim=1)), self.dropout, self.training)

    def evidence(self, features: Features, entities: Entities, size: tuple[int, int]) -> Tensor:
        """Ask the probes for each name: ``(B, K, C, *size)``, with the mean of the others."""
        count = entities.valid.shape[1]
        odds = self._odds(features, entities.text)
        found = self.ask([o.flatten(0, 1) for o in odds], size).unflatten(0, (-1, count))
        if not self.others:
            return found
        valid = entities.valid[..., None, None, None]
        total, number = (found * valid).sum(1, keepdim=True), valid.sum(1, keepdim=True)
        others = (total - found * valid) / (number - valid.long()).clamp(min=1)
        return torch.cat([found, others], dim=2)

    def _odds(self, features: Features, text: Tensor) -> list[Tensor]:
        """Return each probe's standardised answer ``(B, K, S * heads, h, w)``."""
        answers = (
            norm(features.probes[name], text)
            for name, norm in zip(self.feature_spec.probes, self.norms, strict=True)
        )
        return [a.clamp(-LIMIT, LIMIT).transpose(1, 2).flatten(2, 3) for a in answers]

    def presence(self, features: Features, entities: Entities, logits: Tensor) -> Tensor:
        """Return logits ``(B, K)`` of each name being in the picture at all.

        In training, names that are in it and others must come in one call.
        """
        if not self.learns_presence:
            return super().presence(features, entities, logits)
        with torch.autocast(logits.device.type, enabled=False):  # small differences decide
            return self._presence(features, entities, logits.float())

    def _presence(self, features: Features, entities: Entities, logits: Tensor) -> Tensor:
        """Judge what the probes answer inside each mask, for its name and for the rivals."""
        answers = self._odds(features, entities.text)
        masks, facts = logits.sigmoid(), [mask_facts(logits)]
        for odds in answers:
            inside = adaptive_avg_pool2d(masks, odds.shape[-2:])[:, :, None]
            mean = (odds * inside).sum((3, 4)) / (inside.sum((3, 4)) + 1e-3)
            facts += [x - odds.mean((3, 4)) for x in (mean, odds.amax((3, 4)))]
        present = self.judge(torch.cat(facts, dim=2), entities.valid)
        names = self.rivals.names
        if len(names):
            others = self._odds(features, names.expand(len(masks), -1, -1))
            present = present + self.rivals(answers, others, entities.text, masks, entities.valid)
        return present

    def forward(self, features: Features, entities: Entities) -> Tensor:
        """Return logits ``(B, K, H, W)`` at image size."""
        features = self.read(features) if features.merged is None else features
        pixels = features.merged
        batch, count = entities.valid.shape
        size = tuple(pixels.shape[2:])
        known = [pixels[:, None].expand(-1, count, -1, -1, -1)]
        if self.ask is not None:
            known.append(self.evidence(features, entities, size))
        if self.text is not None:
            likeness = self.text(pixels, entities.text)
            if self.training and self.ask is not None:
                shown = torch.rand(batch, count, 1, 1, 1, device=pixels.device) >= self.text_dropout
                likeness = likeness * shown
            known.append(likeness)
        x = self.first(torch.cat(known, dim=2).flatten(0, 1))
        logits = self.first_mask(x)
        if self.prototypes is not None:
            mask = logits.sigmoid().unflatten(0, (batch, count))[:, :, 0]
            likeness = [
                compare(pixels, _mean_inside(pixels, m))
                for compare, m in zip(self.prototypes, (mask, 1 - mask), strict=True)
            ]
            x = self.second(torch.cat([x, torch.cat(likeness, dim=2).flatten(0, 1)], dim=1))
            logits = logits + self.second_mask(x)
        size = (size[0] * self.stride, size[1] * self.stride)
        return resize(logits.unflatten(0, (batch, count))[:, :, 0], size)


def mask_facts(logits: Tensor) -> Tensor:
    """Describe how sure masks are of themselves: ``(B, K, H, W)`` to ``(B, K, MASK_FACTS)``.

    The highest logit, the mean logit inside, the area at 0.5, the mean probability, and the mean
    probability where it is high.
    """
    masks, inside = logits.sigmoid(), (logits > 0).float()
    count = inside.sum((2, 3))
    sure = masks.square().sum((2, 3)) / (masks.sum((2, 3)) + 1e-3)
    mean_inside = (logits * inside).sum((2, 3)) / (count + 1)
    area = inside.mean((2, 3))
    return torch.stack([logits.amax((2, 3)), mean_inside, area, masks.mean((2, 3)), sure], dim=2)


def _mean_inside(pixels: Tensor, masks: Tensor) -> Tensor:
    """Average ``(B, C, h, w)`` over soft masks ``(B, K, h, w)``: ``(B, K, C)``."""
    with torch.autocast(pixels.device.type, enabled=False):  # float16 overflows
        total = torch.einsum("bkhw,bchw->bkc", masks.float(), pixels.float())
    return total / (masks.float().sum((2, 3)) + 1e-3)[..., None]
