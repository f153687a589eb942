"""Charts as inline SVG, drawn for a screen of one width: text keeps its size, the page picks the width that fits."""
