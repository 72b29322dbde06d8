"""StyleGAN2 generator, discriminator, latent spaces and checkpoint import."""
