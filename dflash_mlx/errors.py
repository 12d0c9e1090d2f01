"""What can go wrong for a user, as one tree.

    DFlashError
      UsageError          an option, a prompt or a request that cannot be served
      ModelNotFoundError  a name that leads to no model: no folder, no hub id, no short name
      DownloadError       the hub or the package registry could not be reached, or broke off, as
                          also when uploading
      CheckpointError     files that are damaged, incomplete or not what they claim to be
      UnsupportedError    a model, draft or feature that exists but that we do not run
      PairError           a target and a draft that do not belong together
      Busy                too much to do already; the same request may succeed later

Every message says what was given, what was expected and what to do. The command line prints
it as one line and exits 1; anything that is not a `DFlashError` is a bug and keeps its traceback.
"""


class DFlashError(Exception):
    """Base of every error a user can cause or mend."""


class UsageError(DFlashError):
    """An option, a prompt or a request that cannot be served."""


class ModelNotFoundError(DFlashError):
    """A name that leads to no model."""


class DownloadError(DFlashError):
    """The hub or the package registry could not be reached, or broke off."""


class CheckpointError(DFlashError):
    """Files that are damaged, incomplete or not what they claim to be."""


class UnsupportedError(DFlashError):
    """A model, draft or feature that exists but that we do not run."""


class PairError(DFlashError):
    """A target and a draft that do not belong together."""


class Busy(DFlashError):
    """Too much to do already; the same request may succeed later.

    Attributes:
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
