"""Drawn scenes with exact label maps, deterministic in (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import cv2
import numpy as np
import yaml

from ovseg.clipart.parts import place

SIZE = 64
SUPERSAMPLE = 4
COLORS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 220, 50),
    "green": (50, 160, 70),
    "blue": (40, 90, 210),
    "purple": (130, 50, 170),
    "pink": (250, 150, 190),
    "brown": (125, 75, 35),
    "black": (30, 30, 35),
    "white": (245, 245, 240),
}
TEXTURES = ("plain", "gradient", "striped", "checked")
CONTRAST = (70, 45, 45)  # least difference of a slot's colour to the background, in any channel


@dataclass(frozen=True)
class Noun:
    """One drawable noun: its words and its parts."""

    name: str
    family: str
    article: str
    plural: str
    synonyms: tuple[str, ...]
    parts: tuple[tuple[int, tuple[np.ndarray, ...]], ...]  # (colour slot, contours)


@dataclass(frozen=True)
class Thing:
    """One object of a scene; position and half-size as shares of the image."""

    noun: str
    color: str
    x: float
    y: float
    half: float
    angle: float
    mirror: bool
    rgb: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Scene:
    """All that a picture and its captions are made of."""

    things: tuple[Thing, ...]
    texture: str
    background: str
    rgb: tuple[tuple[int, int, int], tuple[int, int, int]]
    direction: float


@lru_cache(maxsize=1)
def nouns() -> dict[str, Noun]:
    """Return all nouns by name, in the order of nouns.yaml."""
    data = yaml.safe_load((files("ovseg.clipart") / "nouns.yaml").read_text(encoding="utf-8"))
    table = {}
    for family, members in data["families"].items():
        for name, entry in members.items():
            table[name] = Noun(
                name=name,
                family=family,
                article=entry.get("article", "a"),
                plural=entry.get("plural", f"{name}s"),
                synonyms=tuple(entry["synonyms"]),
                parts=tuple((part[5], tuple(place(part))) for part in entry["parts"]),
            )
    return table


def rng(seed: int, index: int) -> np.random.Generator:
    """Return the generator of one (seed, index)."""
    return np.random.Generator(np.random.Philox(key=[seed & (2**63 - 1), index]))


def _jitter(r: np.random.Generator, rgb: tuple[int, int, int], amount: int = 6) -> tuple:
    noise = r.integers(-amount, amount + 1, 3)
    return tuple(int(v) for v in np.clip(np.array(rgb) + noise, 0, 255))


def _distance(a: tuple, b: tuple) -> int:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def _mix(rgb: tuple[int, int, int], other: int, share: float) -> tuple[int, int, int]:
    return tuple(round(v + share * (other - v)) for v in rgb)


def tones(color: str) -> tuple[tuple[int, int, int], ...]:
    """Return an object's colours by slot: its main colour, a lighter and a darker tone of it."""
    main = COLORS[color]
    light = _mix(main, 0, 0.22) if color == "white" else _mix(main, 255, 0.55)
    dark = _mix(main, 255, 0.25) if color == "black" else _mix(main, 0, 0.5)
    return main, light, dark


def _stands_out(color: str, background: tuple) -> bool:
    pairs = zip(tones(color), CONTRAST, strict=True)
    return all(_distance(tone, background) >= least for tone, least in pairs)


def _positions(r: np.random.Generator, halves: list[float]) -> list[tuple[float, float]] | None:
    """Draw centres whose circles do not overlap, or None if that failed."""
    for _ in range(60):
        centres = [tuple(r.uniform(h + 0.01, 0.99 - h, 2)) for h in halves]
        if all(
            np.hypot(a[0] - b[0], a[1] - b[1]) >= halves[i] + halves[j]
            for i, a in enumerate(centres)
            for j, b in enumerate(centres[:i])
        ):
            return centres
    return None


def layout(r: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Draw (x, y, half-size) of ``count`` objects, as shares of the image.

    Half-size 0.30-0.42 for one object, 0.22-0.30 for two; three and four stand in the quarters.
    """
    if count == 1:
        half = r.uniform(0.30, 0.42)
        x, y = r.uniform(half, 1 - half, 2)
        return [(x, y, half)]
    if count == 2:
        while True:
            halves = list(r.uniform(0.22, 0.30, 2))
            centres = _positions(r, halves)
            if centres is not None:
                return [(x, y, h) for (x, y), h in zip(centres, halves, strict=True)]
    cells = r.permutation(4)[:count]
    halves = r.uniform(0.22, 0.24, count)
    shift = r.uniform(-1, 1, (count, 2)) * (0.25 - halves)[:, None]
    return [
        (0.25 + 0.5 * (c % 2) + s[0], 0.25 + 0.5 * (c // 2) + s[1], h)
        for c, h, s in zip(cells, halves, shift, strict=True)
    ]


def compose(r: np.random.Generator, names: list[str]) -> Scene:
    """Draw everything about a scene that shows these nouns (colours never depend on the noun)."""
    colors = list(COLORS)
    background = colors[r.integers(len(colors))]
    texture = TEXTURES[r.choice(4, p=[0.6, 0.3, 0.05, 0.05])]
    first = _jitter(r, COLORS[background])
    second = first
    if texture != "plain":
        step = 36 if texture == "gradient" else 16
        sign = -1 if sum(first) > 380 else 1
        second = tuple(int(np.clip(v + sign * step, 0, 255)) for v in first)
    usable = [c for c in colors if _stands_out(c, first) and _stands_out(c, second)]
    things = []
    for name, (x, y, half) in zip(names, layout(r, len(names)), strict=True):
        color = usable[r.integers(len(usable))]
        things.append(
            Thing(
                noun=name,
                color=color,
                x=float(x),
                y=float(y),
                half=float(half),
                angle=float(r.uniform(-15, 15)),
                mirror=bool(r.random() < 0.5),
                rgb=tuple(_jitter(r, tone) for tone in tones(color)),
            )
        )
    return Scene(
        tuple(things), texture, background, (first, second), float(r.uniform(0, 2 * np.pi))
    )


@lru_cache(maxsize=4)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.meshgrid(axis, axis)


def _background(scene: Scene, side: int) -> np.ndarray:
    first, second = (np.array(c, np.float32) for c in scene.rgb)
    if scene.texture == "plain":
        return np.broadcast_to(first, (side, side, 3)).astype(np.uint8)
    x, y = _grid(side)
    along = np.cos(scene.direction) * (x - 0.5) + np.sin(scene.direction) * (y - 0.5)
    if scene.texture == "gradient":
        share = along / 1.42 + 0.5
    elif scene.texture == "striped":
        share = (np.floor(along * 6 + 20) % 2).astype(np.float32)
    else:
        share = ((np.floor(x * 5) + np.floor(y * 5)) % 2).astype(np.float32)
    return (first + (second - first) * share[..., None]).astype(np.uint8)


def _contours(thing: Thing, contours: tuple[np.ndarray, ...], side: int) -> list[np.ndarray]:
    angle = np.deg2rad(thing.angle)
    c, s = np.cos(angle), np.sin(angle)
    flip = -1.0 if thing.mirror else 1.0
    matrix = np.array([[c * flip, -s], [s * flip, c]]) * thing.half * side
    centre = np.array([thing.x, thing.y]) * side
    return [np.rint((p @ matrix.T + centre) * 16).astype(np.int32) for p in contours]


def render(scene: Scene, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns:
        image ``(size, size, 3)`` uint8 RGB, anti-aliased, and ids ``(size, size)`` uint8: 0 where
        the background covers the most of a pixel, else 1 + the position of the thing that does.
    """
    side = size * SUPERSAMPLE
    image = np.ascontiguousarray(_background(scene, size))
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_NEAREST)
    owner = np.zeros((side, side), np.uint8)
    for number, thing in enumerate(scene.things, start=1):
        for slot, contours in nouns()[thing.noun].parts:
            points = _contours(thing, contours, side)
            cv2.fillPoly(image, points, thing.rgb[slot], lineType=cv2.LINE_8, shift=4)
            cv2.fillPoly(owner, points, number, lineType=cv2.LINE_8, shift=4)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    shares = [
        cv2.resize((owner == k).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        for k in range(len(scene.things) + 1)
    ]
    return image, np.argmax(shares, axis=0).astype(np.uint8)
