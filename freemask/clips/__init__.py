"""A file becomes frames, and frames become files. No room here needs torch."""
