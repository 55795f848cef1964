"""The page in a real browser, which all files here share."""
