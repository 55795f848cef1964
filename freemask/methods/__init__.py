"""What a paper does: its equations, its hooks in the attention layers, its loop."""
