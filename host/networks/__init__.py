"""Networks: which there are, what they cost, and what they return for a set of images."""
