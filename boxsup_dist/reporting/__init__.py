"""How results look: figures, pages and text tables."""
