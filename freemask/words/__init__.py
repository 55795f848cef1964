"""Prompts as words, and words as positions."""
