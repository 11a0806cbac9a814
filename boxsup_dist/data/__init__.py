"""What all stages share: tables and their rows, images, superpixels, masks, and how label maps are painted."""
