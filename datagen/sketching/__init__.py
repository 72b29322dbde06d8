"""Drawing tools that the sketches of several features share."""
