"""What a user can put right, told in one sentence."""


class UserError(Exception):
    """A command cannot do what it was asked; the message says why and what to do. Exit code 2, no traceback."""
