"""Errors that a user can act on; `cellaug` prints them as one line."""


class DataError(ValueError):
    """Something is wrong with the images, folders or options a user gave."""


class BookError(Exception):
    """Profiles, chapters or their order are not as expected."""


class ChapterFailed(Exception):
    """A cell of a chapter raised; the message names chapter, cell and error."""


class ReportError(RuntimeError):
    """The book could not be built; the message lists what has to be fixed."""
