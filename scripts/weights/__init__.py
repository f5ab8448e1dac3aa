"""What travels with trained weights, and loading them."""
