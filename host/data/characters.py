"""The built-in source task: printed digits and capital letters, drawn from the fonts that Matplotlib ships.

Glyphs are rendered once with Pillow; every sample is then a random distortion of one of them: stroke thickness,
scale, aspect, slant, rotation, shift, a smooth elastic field, low resolution (as if scanned at 8x8 or 16x16 pixels),
contrast and pixel noise. White ink (255) on black (0), as in scikit-learn's digits. The test split has the same
fonts in other random draws, so its accuracy says how well the task is learned, not how well it carries to a new font.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from entropi.host.data.dataset import Dataset, Split

CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
# The fonts of that folder with ordinary digits and capitals; the rest are symbol fonts or have old-style digits.
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
SIZE = 32
CANVAS = 64
GLYPH = 44
CHUNK = 512


def load(seed: int = 0, train: int = 16200, test: int = 1008) -> Dataset:
    """The source task: `train` and `test` images, 3x32x32 with three equal channels, classes in equal shares."""
    generator = torch.Generator().manual_seed(seed)
    return Dataset("builtin:characters", CLASSES, draw(train, generator), draw(test, generator))


def draw(samples: int, generator: torch.Generator) -> Split:
    """`samples` new images. The same generator state gives the same images on one machine."""
    bank = _glyphs()
    labels = torch.arange(samples) % len(CLASSES)
    labels = labels[torch.randperm(samples, generator=generator)]
    fonts = torch.randint(len(FONTS), (samples,), generator=generator)
    images = [
        _distort(bank[f, c].unsqueeze(1), generator)
        for f, c in zip(fonts.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    pixels = torch.cat(images).mul_(255).round_().to(torch.uint8)
    return Split(pixels.expand(-1, 3, -1, -1).contiguous().numpy(), labels.numpy())


@cache
def _glyphs() -> torch.Tensor:
    """Every font's characters, float32 (fonts, classes, CANVAS, CANVAS) in 0..1, each filling a GLYPH box."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    bank = np.zeros((len(FONTS), len(CLASSES), CANVAS, CANVAS), np.uint8)
    for i, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 2 * GLYPH)
        for j, character in enumerate(CLASSES):
            left, top, right, bottom = font.getbbox(character)
            page = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(page).text((-left, -top), character, font=font, fill=255)
            scale = GLYPH / max(page.size)
            width, height = (max(1, round(side * scale)) for side in page.size)
            glyph = np.asarray(page.resize((width, height), Image.Resampling.BOX))
            y, x = (CANVAS - height) // 2, (CANVAS - width) // 2
            bank[i, j, y : y + height, x : x + width] = glyph
    return torch.from_numpy(bank).float() / 255


def _distort(glyphs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 1, CANVAS, CANVAS) glyphs to (B, 1, SIZE, SIZE) images, both in 0..1."""
    n = len(glyphs)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    image = _thicken(glyphs, uniform(0, 2.5))
    image = F.grid_sample(image, _grid(uniform, n, generator), align_corners=False)
    image = _degrade(image, uniform(0, 1))
    contrast = uniform(0.8, 1.3).view(n, 1, 1, 1)
    noise = uniform(0, 0.06).view(n, 1, 1, 1) * torch.randn(image.shape, generator=generator)
    return (image * contrast + noise).clamp_(0, 1)


def _thicken(image: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Widen strokes by `amount` canvas pixels on each side, between 0 and 3."""
    levels = [image]
    for _ in range(3):
        levels.append(F.max_pool2d(levels[-1], 3, 1, 1))
    levels = torch.stack(levels)
    low = amount.floor().long().clamp_(max=2)
    share = (amount - low).view(-1, 1, 1, 1)
    samples = torch.arange(len(image))
    return levels[low, samples] * (1 - share) + levels[low + 1, samples] * share


def _grid(uniform, n: int, generator: torch.Generator) -> torch.Tensor:
    """Sampling grid (n, SIZE, SIZE, 2): scale, aspect, slant, rotation and shift, then a smooth elastic field."""
    angle, slant = uniform(-0.2, 0.2), uniform(-0.3, 0.3)
    height = uniform(0.62, 0.8)
    width = height * uniform(0.85, 1.35)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([(cos + sin * slant) * width, (-sin + cos * slant) * width, uniform(-0.1, 0.1)], 1),
        torch.stack([sin * height, cos * height, uniform(-0.08, 0.08)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, SIZE, SIZE], align_corners=False)
    field = torch.randn((n, 2, 4, 4), generator=generator) * uniform(0, 0.1).view(n, 1, 1, 1)
    field = F.interpolate(field, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    return grid + field.permute(0, 2, 3, 1)


def _degrade(image: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
    """Half the images keep 8x8 pixels, a quarter 16x16, the rest all."""
    result = image.clone()
    for factor, chosen in ((4, kind < 0.5), (2, (kind >= 0.5) & (kind < 0.75))):
        small = F.avg_pool2d(image[chosen], factor)
        result[chosen] = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return result
