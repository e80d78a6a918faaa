"""Checks of drawn figures."""

import matplotlib.text
from matplotlib.backends.backend_agg import FigureCanvasAgg

from reports.figures.style import house_style


def is_tick(text):
    return text.replace("\u2212", "").replace(",", "").replace(".", "").isdigit()


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
