"""From a photo to faces, landmarks and label maps: the embedded analyser and the ones that can take its place."""
