"""Checkpoints that survive a crash at any moment: whole or not there, checked when read, with one kept in reserve."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sotr.errors import SOTRError, first_line
from sotr.files import atomic_write

FOLDER = "checkpoints"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that cannot run code when loaded; `last.ckpt` becomes `previous.ckpt` when a new one is complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a temporary file and bring it to the disk, then put it in its place.

        Raises:
            SOTRError: the file cannot be written; the one before it is still there.
        """
        path = Path(path)
        try:
            with atomic_write(path) as file:
                torch.save(checkpoint, file)
                file.flush()
                if path.name == LAST and path.is_file():
                    # From here until the new file takes the name, `newest_checkpoint` finds the previous one.
                    path.replace(path.with_name(PREVIOUS))
        except (OSError, RuntimeError) as error:  # PyTorch's writer turns a failed write into a RuntimeError
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise SOTRError(
                f"cannot write {path} ({cause.strerror or cause}); the checkpoint before it is intact: "
                "make room, then continue with --resume"
            ) from None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Tensors and plain values only.

        Raises:
            SOTRError: if the file is damaged or not a checkpoint.
        """
        return load_checkpoint(path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU; tensors and plain values only, their checksums verified.

    Raises:
        SOTRError: if the file is missing, damaged or not a checkpoint.
    """
    try:
        # The file is a ZIP archive, which holds a CRC of each tensor; PyTorch itself does not look at them.
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the damaged bytes lead to
        # PyTorch explains at length; the first sentence says it.
        reason = first_line(error).split(". ")[0]
        raise SOTRError(f"{path} is not a checkpoint that can be read ({reason}); restore it or train anew") from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "loops"} <= checkpoint.keys():
        raise SOTRError(f"{path} is not a checkpoint of a training; restore it or train anew")
    return checkpoint


def newest_checkpoint(run: Path, say: Callable[[str], object]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read, with its contents; None if the run has none at all.

    Args:
        run: the run folder.
        say: told of a damaged checkpoint that is passed over.

    Raises:
        SOTRError: there are checkpoints, but none of them can be read.
    """
    refused: SOTRError | None = None
    for path in (run / FOLDER / LAST, run / FOLDER / PREVIOUS):
        if not path.is_file():
            continue
        try:
            checkpoint = load_checkpoint(path)
        except SOTRError as error:
            refused = refused or error
            continue
        if refused is not None:
            say(f"{refused}; going on from {path.name} instead, after step {checkpoint['global_step']}")
        return path, checkpoint
    if refused is not None:
        raise refused
    return None


def has_checkpoint(run: Path) -> bool:
    """Whether a run has saved anything to go on from."""
    return any((run / FOLDER / name).is_file() for name in (LAST, PREVIOUS))


def remove_leftovers(run: Path) -> None:
    """Delete the temporary files of a process that was killed while it saved."""
    for path in (run / FOLDER).glob(".*.ckpt.*.tmp"):
        path.unlink(missing_ok=True)
