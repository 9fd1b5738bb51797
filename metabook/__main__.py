"""``python -m metabook``: the command line."""

from metabook.cli import app

app(prog_name="metabook")
