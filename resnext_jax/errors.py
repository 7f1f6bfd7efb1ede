"""Errors that are the user's to mend: one sentence, no traceback, exit status 2."""


class UserError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do."""


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """A data set that is missing, damaged or cannot be read yet."""


class CheckpointError(UserError):
    """A checkpoint that is missing or does not fit the model."""


class WorkdirError(UserError):
    """A work directory that cannot be read or written."""
