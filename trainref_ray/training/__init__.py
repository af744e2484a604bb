"""Training a classifier on hard or soft labels: the loop, its loss, its views, and temperature scaling."""
