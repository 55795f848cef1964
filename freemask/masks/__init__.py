"""What an inversion remembers, and which masks an edit makes of it."""
