"""Published methods of latent editing, a file each."""
