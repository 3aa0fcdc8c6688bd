"""What may be printed: names of folders, classes and files may come from somebody else."""


def printable(text: str) -> str:
    """Leave out of a line what would steer a terminal, or turn the direction of its letters.

    Example:
      >>> printable("a\\x1b[31mred\\u202e")
      'a[31mred'
    """
    return "".join(filter(str.isprintable, text))
