"""Training: recipes, data and the Trainer."""
