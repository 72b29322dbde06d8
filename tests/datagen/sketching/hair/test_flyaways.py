"""Loose strands: what drawing one costs, and that it may leave the picture."""

import cv2
import numpy as np

from stylepairs.datagen.sketching.hair import flyaways


def arc(x, y):
    """A strand of 24 points, 20 px long, from (x, y)."""
    along = np.linspace(0, 20, 24)
    return np.stack([x + along, y + 0.2 * along**1.2], -1)


def test_a_strand_costs_its_own_surroundings(monkeypatch):
    shapes, draw = [], cv2.polylines

    def noted(canvas, *rest, **options):
        shapes.append(canvas.shape)
        return draw(canvas, *rest, **options)

    monkeypatch.setattr(cv2, "polylines", noted)
    canvas = np.zeros((1024, 1024), np.float32)
    flyaways._draw(canvas, arc(100, 120), 0.6)
    assert canvas.max() > 0.5
    assert max(max(shape) for shape in shapes) < 150


def test_what_leaves_the_picture_is_left_out():
    whole = np.zeros((400, 400), np.float32)
    flyaways._draw(whole, arc(40, 40), 0.6)
    cut = np.zeros((400, 200), np.float32)
    flyaways._draw(cut, arc(40, 40), 0.6)
    assert 0 < cut.sum() < whole.sum()
    for x, y in ((-60, 40), (40, -60), (400, 40), (40, 400)):
        nothing = np.zeros((200, 200), np.float32)
        flyaways._draw(nothing, arc(x, y), 0.6)
        assert not nothing.any()
