"""The one exception for complaints about a user's data."""


class DataError(ValueError):
    """Something is wrong with the images, folders or options a user gave.

    The message names the file or option, says what was expected and how to mend it.
    """
