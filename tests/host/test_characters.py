import numpy as np
import torch

from entropi.host.data import characters


def test_same_seed_same_images():
    first, second = (characters.draw(600, torch.Generator().manual_seed(5)) for _ in range(2))
    assert (first.images == second.images).all() and (first.labels == second.labels).all()
    other = characters.draw(600, torch.Generator().manual_seed(6))
    assert (first.images != other.images).any()


def test_white_ink_on_black_in_three_equal_channels():
    split = characters.draw(720, torch.Generator().manual_seed(0))
    assert split.images.shape == (720, 3, 32, 32) and split.images.dtype == np.uint8
    assert (split.images[:, :1] == split.images).all()
    assert np.bincount(split.labels).tolist() == [20] * 36
    assert split.images[..., 0].mean() < 60 < split.images[..., 8:24, 8:24].mean()
    assert split.images.max((1, 2, 3)).min() > 60  # no empty image


def test_every_font_draws_every_character():
    bank = characters._glyphs()
    assert bank.shape[:2] == (len(characters.FONTS), 36)
    ink = bank.mean((2, 3))
    assert ink.min() > 0.02
    shapes = bank.flatten(2)
    for font in range(len(characters.FONTS)):
        distance = torch.cdist(shapes[font], shapes[font]) + torch.eye(36) * 1e3
        assert distance.min() > 3  # no two characters look the same, as the boxes of a missing glyph would
