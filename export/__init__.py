"""Export: from a trained checkpoint to a bundle. The only package that imports torch."""
