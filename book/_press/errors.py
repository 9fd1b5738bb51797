"""The one kind of failure that the command line reports as a line and not as a traceback."""


class PressError(Exception):
    """The book cannot be made as it is; the message says where and why."""
