"""Beyond the paper: the slides' VAE, classifier and synthesis, and small autoencoders."""
