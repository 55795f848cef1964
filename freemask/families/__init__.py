"""Kinds of model: how one is loaded, asked and looked into."""
