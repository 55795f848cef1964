"""`python -m freemask`."""

from .cli import app

app(prog_name="python -m freemask")
