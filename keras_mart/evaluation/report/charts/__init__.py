"""Charts as inline SVG, drawn once per screen width, so that text keeps its size; the page shows the one that fits."""
