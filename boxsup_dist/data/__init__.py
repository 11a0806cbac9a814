"""What stages share: the tables and their rows, superpixels, painting, images."""
