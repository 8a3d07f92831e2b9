"""Lightning without its advertising and its remarks on what was chosen knowingly."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet_lightning"]

REMARKS = (
    # The data are a list in memory: worker processes would only add their start-up time.
    r".*does not have many workers.*",
    # accelerator="cpu" on a machine with an accelerator is what was asked for.
    r".*GPU available but not used.*",
    # The student is in eval mode on purpose: the policy that is trained is the one that is sampled, without dropout.
    r".*module\(s\) in eval mode at the start of training.*",
    # Lightning 2.6 asks torch 2.13 the old way.
    r".*isinstance\(treespec, LeafSpec\).*",
    # A resumed run's folder holds checkpoints, and may have been moved.
    r"Checkpoint directory .* exists and is not empty.*",
    r"The dirpath has changed from .*",
    # Short runs log at the end.
    r".*The number of training batches .* is smaller than the logging interval.*",
)
# Lightning 2.6 uses what torch 2.13 deprecates; nobody who runs a fit can mend it.
DEPRECATED = r".*isinstance\(treespec, LeafSpec\).*"
PLACES = (
    "pytorch.utilities.rank_zero",
    "fabric.utilities.rank_zero",
    "pytorch.trainer.connectors.checkpoint_connector",
)
TIPS = (
    "Tip: For seamless cloud",
    "GPU available:",
    "TPU available:",
    "`Trainer.fit` stopped:",
    "`weights_only` was not set",
)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Drop these lines and warnings, and no others, while inside."""
    loggers = [logging.getLogger(f"lightning.{place}") for place in PLACES]

    def wanted(record: logging.LogRecord) -> bool:
        return not any(tip in record.getMessage() for tip in TIPS)

    for logger in loggers:
        logger.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            for remark in REMARKS:
                warnings.filterwarnings("ignore", message=remark)
            warnings.filterwarnings("ignore", message=DEPRECATED, category=FutureWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(wanted)
