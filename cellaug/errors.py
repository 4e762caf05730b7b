"""Errors that a user can act on; `cellaug` prints them as one line."""

import errno

ADVICE = {
    errno.ENOSPC: "the disk is full: make room on it, or give a folder on another one",
    errno.EDQUOT: "your share of this disk is full: delete files, or give a folder on another one",
    errno.EROFS: "this disk can only be read: give a folder on another one",
    errno.EEXIST: "a file of this name is there already: give another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder: give another path",
    errno.EISDIR: "this is a folder, expected a file",
    errno.ENOENT: "there is no such file or folder: give another path",
    errno.EACCES: "you have no right to it: ask for the right, or give another file or folder",
}
"""What to do about an error of the system."""


class DataError(ValueError):
    """Something is wrong with the images, folders or options a user gave."""


class BookError(Exception):
    """Profiles, chapters or their order are not as expected."""


class ChapterFailed(Exception):
    """A cell of a chapter raised; the message names chapter, cell and error."""


class ReportError(RuntimeError):
    """The book could not be built; the message lists what has to be fixed."""


def in_words(error: Exception) -> str:
    """An error as a sentence; one of the system with its file and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    what = ADVICE.get(error.errno, error.strerror)
    return f"{what}" if error.filename is None else f"{error.filename}: {what}"
