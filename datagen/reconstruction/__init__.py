"""Masked reconstruction of portraits by StyleGAN."""
