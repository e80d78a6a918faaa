"""Checks of drawn figures."""

import matplotlib.text
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from reports.figures.style import house_style


def is_tick(text):
    return text.replace("\u2212", "").replace(",", "").replace(".", "").isdigit()


def overlapping(figure, texts, points=None):
    """List the pairs of texts, or of texts and points, that lie on each other by more than a pixel."""
    figure.draw_without_rendering()
    boxes = [(text.get_text(), matplotlib.text.Text.get_window_extent(text)) for text in texts]  # without their lines
    if points is None:
        pairs = [(a, b) for k, a in enumerate(boxes) for b in boxes[k + 1 :]]
    else:
        spots = figure.axes[0].transData.transform(points)
        pairs = [(a, (f"point {k}", Bbox([spot, spot]).padded(1.5))) for a in boxes for k, spot in enumerate(spots)]
    found = []
    for (name, a), (other, b) in pairs:
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1:
            found.append((name, other))
    return found


def clipped(figure):
    """List the texts that reach beyond the paper."""
    canvas = FigureCanvasAgg(figure)
    with house_style():
        canvas.draw()
        width, height = figure.bbox.width, figure.bbox.height
        texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
        assert len(texts) > 3
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [t for t, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
