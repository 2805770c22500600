"""Weights that Li et al. released, as those of a `FusionGrounder`.

Their names are those of the authors' module (github.com/Lipurple/Grounded-Diffusion).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import normalize

from ovseg.grounders.fusion import FusionGrounder

LEVELS = ("low", "mid", "high", "highest")
EPS = 1e-4  # of the spectral norm


def convert(released: Mapping[str, Tensor], grounder: FusionGrounder) -> dict[str, Tensor]:
    """Return the state dict of a grounder from that of the released module.

    Their spectral norm takes one step of power iteration whenever it is used; ours stores the
    vectors after that step, so that both divide by the same number.

    Args:
        released: State dict, its names with or without "module." in front.
        grounder: Built for the same sizes; with `norm="instance"` the stored statistics are left.

    Raises:
        ValueError: If the grounder has not their four groups of taps, names are missing or unknown,
            or a shape differs; names the first ones.
    """
    if (groups := len(grounder.groups)) != len(LEVELS):
        raise ValueError(
            f"the released grounding module reads taps of {len(LEVELS)} strides, the grounder's "
            f"have {groups}: build it on the taps of Stable Diffusion 1.x (SD1_TAPS)"
        )
    released = {name.removeprefix("module."): tensor for name, tensor in released.items()}
    own = grounder.state_dict()
    names = _names(len(grounder.decoder), stored="blocks.0.norm1.running_mean" in own)
    ignored = {f"{b}.{n}" for b, _ in _blocks() for n in ("conv1.sv0", "conv2.sv0")}
    ignored |= {f"{b}.stored_{s}{n}" for b, _ in _blocks() for s in ("mean", "var") for n in (1, 2)}
    shapes = {name: _shape(targets, own) for name, targets in names.items()}
    _check(released, shapes, ignored)
    state = dict(own)
    for name, targets in names.items():
        if targets:
            parts = released[name].float().chunk(len(targets))
            state.update(zip(targets, parts, strict=True))
    for theirs, ours in _blocks():
        for conv in ("conv1", "conv2"):
            matrix = released[f"{theirs}.{conv}.weight"].float().flatten(1)
            u = released[f"{theirs}.{conv}.u0"].float()[0]
            v = normalize(matrix.T @ u, dim=0, eps=EPS)
            norm = f"{ours}.{conv}.parametrizations.weight.0"
            state[f"{norm}._u"] = normalize(matrix @ v, dim=0, eps=EPS)
            state[f"{norm}._v"] = v
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _blocks() -> list[tuple[str, str]]:
    return [(f"{level}_feature_mix_conv", f"blocks.{i}") for i, level in enumerate(LEVELS[1:])]


def _names(layers: int, stored: bool) -> dict[str, list[str]]:
    """Map each released name to ours; a tensor with several is cut along its first axis."""
    names = {"to_k.weight": ["to_key.weight"], "to_q.weight": ["to_query.weight"]}
    for i, level in enumerate(LEVELS):
        names[f"{level}_feature_conv.0.weight"] = [f"projections.{i}.weight"]
    for theirs, ours in _blocks():
        for n in (1, 2):
            conv = f"{ours}.conv{n}"
            names[f"{theirs}.conv{n}.weight"] = [f"{conv}.parametrizations.weight.original"]
            names[f"{theirs}.conv{n}.bias"] = [f"{conv}.bias"]
            names[f"{theirs}.conv{n}.u0"] = []
            if stored:
                names[f"{theirs}.stored_mean{n}"] = [f"{ours}.norm{n}.running_mean"]
                names[f"{theirs}.stored_var{n}"] = [f"{ours}.norm{n}.running_var"]
    for i in range(layers):
        theirs, ours = f"transfromer_decoder.layers.{i}", f"decoder.{i}"
        for a, b in (("self_attn", "self_attention"), ("multihead_attn", "cross_attention")):
            parts = [f"{ours}.{b}.{part}.weight" for part in ("query", "key", "value")]
            names[f"{theirs}.{a}.in_proj_weight"] = parts
            names[f"{theirs}.{a}.out_proj.weight"] = [f"{ours}.{b}.out.weight"]
        for part in ("linear1", "linear2", "norm1", "norm2", "norm3"):
            for kind in ("weight", "bias"):
                names[f"{theirs}.{part}.{kind}"] = [f"{ours}.{part}.{kind}"]
    for i in range(3):
        for kind in ("weight", "bias"):
            names[f"mlp.layers.{i}.{kind}"] = [f"head.{2 * i}.{kind}"]
    return names


def _shape(targets: list[str], own: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    if not targets:
        return None  # a vector of the spectral norm, as long as its convolution is wide
    first, *rest = own[targets[0]].shape
    return (first * len(targets), *rest)


def _check(
    released: Mapping[str, Tensor], shapes: Mapping[str, tuple | None], ignored: set[str]
) -> None:
    wrong = [f"{name} is missing" for name in shapes if name not in released]
    wrong += [f"{name} is unknown" for name in released if name not in {*shapes, *ignored}]
    for name, wanted in shapes.items():
        if wanted is None:
            wanted = (1, len(released.get(name.replace("u0", "bias"), ())))
        if name in released and tuple(released[name].shape) != wanted:
            wrong.append(f"{name} is {tuple(released[name].shape)}, wanted {wanted}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"these are not the weights of the released grounding module: "
            f"{'; '.join(wrong[:5])}{more}"
        )
