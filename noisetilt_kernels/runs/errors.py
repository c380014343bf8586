"""What can go wrong with a run that a person can do something about; each message is one sentence with the way out."""

from ..checks import NoisetiltError


class RunFolderError(NoisetiltError):
    """A folder cannot be used for this run."""


class OtherProcessError(NoisetiltError):
    """Another process of the run has ended, so that this one cannot go on."""


class OutOfMemoryError(NoisetiltError):
    """The device's memory did not suffice."""
