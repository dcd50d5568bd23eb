"""Synthetic identities: drawn faces, so that everything can run and be tested without photos.

An identity is a set of numbers for geometry and color. Pose, light, background, expression,
occlusion, blur and noise differ from image to image. A seed, an identity and the number of an image
always give the same drawing.

The path is a line of options, each of which may be missing:
`synthetic:identities=200,images=20,first=0,first_image=0,seed=0,size=112`. The labels
0…identities-1 stand for the identities first…first+identities-1, so sets with different `first`
have no person in common. Sets with different `first_image` have other pictures of the same people.
"""

from typing import Any

import cv2
import numpy as np

from data.decode import encode_jpeg
from data.faces import GENERATED
from data.limits import MOST_IDENTITIES
from data.types import Int64, Pixels

DEFAULTS = {
    "identities": 200,
    "images": 20,
    "first": 0,
    "first_image": 0,
    "seed": 0,
    "size": 112,
}
# Drawings kept in memory, so that only the first epoch draws.
KEPT_BYTES = 1 << 28
MOST_IMAGES, MOST_SIDE = 1 << 31, 1 << 14
SUBPIXEL = 4  # OpenCV counts coordinates in 1/2**SUBPIXEL pixels


class SyntheticSet:
    """A FaceSet that draws an image when it is read.

    Image `index` is image first_image + index % images of identity first + index // images.
    """

    def __init__(
        self, *, identities: int, images: int, first: int, first_image: int, seed: int, size: int
    ) -> None:
        self.images = images
        self.first = first
        self.first_image = first_image
        self.seed = seed
        self.size = size
        self.num_classes = identities
        self.labels: Int64 = np.repeat(np.arange(identities), images)
        self._drawn: dict[int, bytes] = {}
        self._kept = 0  # bytes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        encoded = self._drawn.get(index)
        if encoded is None:
            person, image = self._drawing(range(len(self))[index])
            encoded = encode_jpeg(
                draw(seed=self.seed, identity=person, image=image, size=self.size)
            )
            # Two threads may draw the same image; the sum then stays a little too high.
            if self._kept + len(encoded) <= KEPT_BYTES:
                self._drawn[index] = encoded
                self._kept += len(encoded)
        return encoded

    def describe(self, index: int) -> str:
        person, image = self._drawing(index)
        return f"synthetic identity {person} image {image}"

    def _drawing(self, index: int) -> tuple[int, int]:
        """Identity and number of the drawing with this index."""
        identity, image = divmod(index, self.images)
        return self.first + identity, self.first_image + image

    def keys_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        images = np.arange(len(self)) % self.images + self.first_image
        seed_and_size = np.int64((self.seed % 2**40) << 16 | self.size)
        keys = (self.labels + self.first) << 32 | images
        return keys, np.broadcast_to(seed_and_size, len(self))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_drawn": {}, "_kept": 0}


def detect(path: str) -> bool:
    return path.startswith(GENERATED)


def open_set(path: str) -> SyntheticSet:
    """Parses `synthetic:key=value,…`; DEFAULTS has the keys and their defaults."""
    options = dict(DEFAULTS)
    for item in filter(None, path.removeprefix(GENERATED).split(",")):
        key, _, value = item.partition("=")
        if key not in DEFAULTS:
            raise ValueError(f"{path}: unknown option {key!r}; there are {', '.join(DEFAULTS)}")
        if not value.isdecimal():
            raise ValueError(f"{path}: {key}={value!r}, expected a whole number")
        options[key] = int(value)
    for key in ("identities", "images", "size"):
        if options[key] < 1:
            raise ValueError(f"{path}: {key} must be at least 1")
    images = options["identities"] * options["images"]
    for key, found, most in (
        ("identities", options["identities"], MOST_IDENTITIES),
        ("identities × images", images, MOST_IMAGES),
        ("size", options["size"], MOST_SIDE),
    ):
        if found > most:
            raise ValueError(f"{path}: {key} is {found}, at most {most} are possible")
    return SyntheticSet(**options)


def draw(*, seed: int, identity: int, image: int, size: int) -> Pixels:
    """uint8 (size,size,3) RGB drawing.

    Coordinates in the functions below are (0, 0) in the middle of the picture and ±1 at its edges.
    """
    person = _person(np.random.default_rng([seed, identity]))
    rng = np.random.default_rng([seed, identity, image])
    canvas = _background(rng, size)
    _face(canvas, person, rng)
    return _photograph(canvas, rng)


def _person(rng: np.random.Generator) -> dict[str, Any]:
    """The numbers that make an identity, each drawn independently."""
    u = rng.uniform
    tone = u(0.0, 1.0)
    skin = np.array([245, 215, 190]) * (1 - tone) + np.array([110, 70, 45]) * tone + u(-16, 16, 3)
    return {
        "width": u(0.50, 0.74),
        "height": u(0.70, 0.92),
        "jaw": u(0.45, 1.05),
        "skin": skin,
        "hair": np.array([u(15, 225), u(15, 185), u(10, 150)]),
        "hairline": u(0.32, 0.80),
        "volume": u(0.02, 0.30),
        "length": u(-0.4, 0.75),
        "eye_x": u(0.20, 0.36),
        "eye_y": u(-0.26, -0.06),
        "eye_w": u(0.085, 0.17),
        "eye_h": u(0.04, 0.10),
        "iris": u(20, 190, 3),
        "slant": u(-0.05, 0.05),
        "brow_y": u(0.10, 0.22),
        "brow_h": u(0.02, 0.085),
        "brow_slope": u(-0.08, 0.08),
        "nose": u(0.16, 0.40),
        "nose_w": u(0.05, 0.16),
        "mouth_y": u(0.36, 0.54),
        "mouth_w": u(0.14, 0.34),
        "lip": u(0.025, 0.085),
        "lips": skin * 0.45 + 0.55 * np.array([u(120, 220), u(30, 110), u(40, 120)]),
        "beard": max(0.0, u(-0.8, 0.7)),
        "moles": u(-0.42, 0.42, (2, 2)),
        "mole_r": u(0.0, 0.045, 2),
    }


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """uint8 (size,size,3): a coarse random field of colors, as rooms and streets are."""
    coarse = rng.integers(0, 256, (rng.integers(2, 6), rng.integers(2, 6), 3), dtype=np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _face(canvas: Pixels, p: dict[str, Any], rng: np.random.Generator) -> None:
    """Draws the person onto the canvas in one pose and expression."""
    u = rng.uniform
    half = canvas.shape[0] / 2
    angle, zoom = u(-0.20, 0.20), u(0.90, 1.08)
    turn, tilt = u(-0.16, 0.16), u(-0.07, 0.07)  # features slide over the head as it turns
    center = np.array([u(-0.09, 0.09), u(-0.02, 0.12)])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom
    smile, opened = u(-0.06, 0.07), max(0.0, u(-0.12, 0.12))
    blink, frown = u(0.45, 1.0), u(-0.03, 0.03)

    def pixels(points: np.ndarray) -> np.ndarray:
        placed = ((points @ rotation.T + center + 1) * half - 0.5) * (1 << SUBPIXEL)
        return np.asarray(placed.round(), np.int32)

    def fill(points: np.ndarray, color: np.ndarray) -> None:
        rgb = tuple(float(value) for value in np.clip(color, 0, 255))
        cv2.fillPoly(canvas, [pixels(points)], rgb, cv2.LINE_AA, SUBPIXEL)

    def oval(x: float, y: float, width: float, height: float, steps: int = 16) -> np.ndarray:
        t = np.linspace(0, 2 * np.pi, steps, endpoint=False)
        return np.stack([x + width * np.cos(t), y + height * np.sin(t)], 1)

    # Hair behind the head, and the neck.
    skin, hair = p["skin"], p["hair"]
    w, h = p["width"], p["height"]
    back = oval(0, -0.10, w + p["volume"], h + p["volume"] * 0.7, 24)
    x, y = back.T
    y[:] = np.where(y > 0, np.minimum(y, 0) + p["length"] * (y > 0.05), y)
    fill(back, hair)
    fill(np.array([[-0.3 * w, 0.5], [0.3 * w, 0.5], [0.5 * w, 1.6], [-0.5 * w, 1.6]]), skin * 0.82)

    # The head, narrower at the jaw, with hair on top and perhaps a beard.
    outline = oval(0, 0, w, h, 32)
    below = np.maximum(outline[:, 1] / h, 0)
    outline[:, 0] *= 1 - (1 - p["jaw"]) * below**2 * 0.55
    fill(outline, skin)
    top = outline[outline[:, 1] < -p["hairline"] * h + 0.12]
    if len(top) > 2:
        fill(top, hair)
    if p["beard"] > 0.05:
        low = outline[outline[:, 1] > 0.18] * [0.98, 0.99]
        low = low[np.argsort(low[:, 0])]
        rim = np.concatenate([low, low[::-1] * [0.72, 0.55] + [0, 0.12]])
        fill(rim, skin * (1 - p["beard"]) + hair * p["beard"])

    # Eyes and brows.
    slide = np.array([turn, tilt])
    foreshortening = np.array([1 - abs(turn) * 0.9, 1.0])
    for side in (-1.0, 1.0):
        x, y = np.array([side * p["eye_x"], p["eye_y"]]) * foreshortening + slide
        lids = oval(x, y, p["eye_w"], p["eye_h"] * blink)
        lids[:, 1] += side * p["slant"] * (lids[:, 0] - x) / p["eye_w"]
        fill(lids, np.array([240, 238, 235]))
        gaze = x + turn * 0.15
        iris, pupil = p["eye_h"] * 0.85, p["eye_h"] * 0.35
        fill(oval(gaze, y, iris, iris * min(1, blink * 1.1)), p["iris"])
        fill(oval(gaze, y, pupil, pupil, 8), np.array([10, 10, 10]))
        inner, outer = x - side * p["eye_w"], x + side * p["eye_w"] * 1.2
        brow = y - p["brow_y"] + frown
        slope, thick = p["brow_slope"], p["brow_h"]
        upper = [[inner, brow + slope], [outer, brow - slope]]
        lower = [[outer, brow - slope + thick * 0.6], [inner, brow + slope + thick]]
        fill(np.array(upper + lower), hair * 0.75)

    # Nose and mouth.
    nx, ny = slide * 1.5
    tip = p["eye_y"] + p["nose"] + ny
    sides = [[nx + p["nose_w"], tip], [nx, tip + 0.05], [nx - p["nose_w"], tip]]
    fill(np.array([[nx * 0.6, p["eye_y"] + ny], *sides]), skin * 0.83)
    mx, my = slide[0] * 1.1, p["mouth_y"] + slide[1]
    mw, lip = p["mouth_w"] * foreshortening[0], p["lip"]
    mouth = oval(mx, my, mw, lip + opened * 0.5)
    mouth[:, 1] -= smile * ((mouth[:, 0] - mx) / mw) ** 2
    fill(mouth, p["lips"])
    if opened > 0.02:
        fill(oval(mx, my, mw * 0.8, opened * 0.45), np.array([60, 20, 20]))

    # Moles, and in some pictures glasses or something in front of the face.
    for place, radius in zip(p["moles"], p["mole_r"], strict=True):
        if radius > 0.015:
            fill(oval(place[0] + slide[0], place[1] + 0.15, radius, radius, 8), skin * 0.35)
    if u() < 0.15:
        frame, thickness = (25.0, 25.0, 30.0), 1 + canvas.shape[0] // 56
        for side in (-1.0, 1.0):
            rim = pixels(oval(side * p["eye_x"] + slide[0], p["eye_y"] + slide[1], 0.2, 0.15))
            cv2.polylines(canvas, [rim], True, frame, thickness, cv2.LINE_AA, SUBPIXEL)
    if u() < 0.12:
        x, y = u(-0.9, 0.9), u(0.2, 0.9)
        fill(oval(x, y, u(0.1, 0.35), u(0.1, 0.35), 12), u(0, 255, 3))


def _photograph(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    """Light from one side, exposure, color cast, contrast, blur and sensor noise."""
    size = canvas.shape[0]
    u = rng.uniform
    across = np.linspace(-1, 1, size, dtype=np.float32)
    direction, strength = u(0, 2 * np.pi), u(0.0, 0.65)
    gradient = np.cos(direction) * across[None, :] + np.sin(direction) * across[:, None]
    light = np.clip(1 + strength * gradient, 0.12, 2)[:, :, None].astype(np.float32)
    cast = (u(0.55, 1.35) * u(0.85, 1.15, 3)).astype(np.float32)
    picture: np.ndarray = canvas.astype(np.float32) * light * cast
    if (sigma := u(0.0, 1.3) * size / 112) > 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    grain = np.float32(u(1, 9)) * rng.standard_normal((size, size, 1), np.float32)
    if u() < 0.5:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(np.clip(picture + grain, 0, 255).astype(np.uint8))
