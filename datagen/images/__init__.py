"""Image files, colours, filters and perceptual features."""
