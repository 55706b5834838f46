"""Reference weights: small models trained by this project, and the recipe that made them."""
