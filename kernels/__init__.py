"""StyleGAN operations: plain references, fast paths beside them, one dispatcher."""
