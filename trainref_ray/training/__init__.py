"""Training on hard, soft or no labels: the loop, its losses, its views, and temperature scaling."""
