"""Errors of runs that a user can fix. Each message is one sentence with the remedy."""

from ..checks import NoisetiltError


class RunFolderError(NoisetiltError):
    """The folder cannot be used for this run."""


class OtherProcessError(NoisetiltError):
    """Another process of the run has ended, so this one cannot continue."""


class OutOfMemoryError(NoisetiltError):
    """The device ran out of memory."""
