"""Write what `predict` yields as shards; killed at any moment, it goes on where it was."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch import Callback, LightningModule, Trainer
from webdataset import TarWriter

from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.manifest import finish, prepare
from ovseg.data.shard_format import encode_sample, samples_of, shard_name
from ovseg.structures import IGNORE, Batch


class ShardWriter(Callback):
    """Write the predict streams of a `SyntheticDataModule` to folders of WebDataset tars.

    A shard is written as ``.tmp`` and renamed when it is complete, so a file under its final name
    is done; only the others are made. `dataset.json` is written when none is missing. Bytes do not
    depend on the number of processes, on their order or on interruptions.

    Args:
        output: Folder of the dataset; with several streams ``{name}`` in it stands for the name of
            the stream. Another dataset in the folder is refused.
        soft: Store the annotator's soft masks too, at feature size.
    """

    def __init__(self, output: str, soft: bool = False) -> None:
        self.output = output
        self.soft = soft
        self._folders: list[Path] = []
        self._tar: _Shard | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the folder with what is asked for, and hand the pending shards to the data.

        Raises:
            ValueError: If the folder holds another dataset, or the data cannot be written.
            PermissionError: If the folder cannot be written.
        """
        if stage != "predict":
            return
        data = trainer.datamodule
        if not isinstance(data, SyntheticDataModule):
            raise ValueError(f"ShardWriter writes a SyntheticDataModule, not {type(data).__name__}")
        if data.vocabulary.num_classes > IGNORE:
            raise ValueError(
                f"a mask of uint8 holds {IGNORE - 1} classes, vocabulary "
                f"{data.vocabulary.name!r} has {data.vocabulary.num_classes - 1}"
            )
        if len(data.predict) > 1 and "{name}" not in self.output:
            raise ValueError(
                f"output must hold {{name}} to keep {len(data.predict)} streams apart, got "
                f"{self.output!r}: write e.g. {self.output}/{{name}}"
            )
        self._folders = [Path(self.output.replace("{name}", name)) for name in data.predict]
        pending = error = None
        if trainer.is_global_zero:
            try:
                pending = self._prepare(data)
            except (ValueError, PermissionError) as raised:
                error = raised
        pending, error = trainer.strategy.broadcast((pending, error))
        if error is not None:  # on every rank, so that none waits for the others
            raise error
        data.pending = pending
        for folder, shards in zip(self._folders, pending.values(), strict=True):
            if not shards:
                trainer.print(f"{folder} has all its shards: nothing to generate")

    def _prepare(self, data: SyntheticDataModule) -> dict[str, list[int]]:
        """Return the pending shards of each stream."""
        pending = {}
        for folder, (name, stream) in zip(self._folders, data.predict.items(), strict=True):
            request = data.describe(name)
            request["config"]["soft"] = self.soft
            pending[name] = prepare(folder, request, stream.num_shards)
        return pending

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append a batch to its shard.

        Raises:
            ValueError: If a batch does not belong to a shard, or another process writes it.
            OSError: If the disk is full; the finished shards are kept.
        """
        if not isinstance(outputs, Batch) or len(outputs) == 0:
            return
        place = outputs.position
        if place is None or (self._tar is None) != place.first:
            raise ValueError(
                f"batch {outputs.indices.tolist()} is not the next part of a shard: the predict "
                "loader must be that of SyntheticDataModule"
            )
        size = None
        if self.soft:  # that of the finest tap
            stride = min(tap.stride for tap in trainer.datamodule.feature_spec.taps.values())
            size = tuple(side // stride for side in outputs.images.shape[-2:])
        path = self._folders[dataloader_idx] / shard_name(place.shard)
        try:
            if place.first:
                self._tar = _Shard(path)
            for sample in samples_of(outputs, size):
                self._tar.write(encode_sample(sample))
            if place.last:
                self._tar.publish()
                self._tar = None
        except OSError as error:
            raise type(error)(
                error.errno,
                f"cannot write {path} ({error.strerror}); what was finished is kept: mend that and "
                "run the same command again",
            ) from error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the dataset once every process has written its shards."""
        trainer.strategy.barrier("all shards are written")
        if trainer.is_global_zero:
            data = trainer.datamodule
            for folder, stream in zip(self._folders, data.predict.values(), strict=True):
                if not finish(folder, stream.num_shards, data.vocabulary):
                    trainer.print(f"{folder} lacks some shards: run `predict` again")
        trainer.strategy.barrier("the dataset is described")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove a shard that was not completed."""
        self._drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove a shard that was not completed, because the trainer limits the batches."""
        self._drop()

    def _drop(self) -> None:
        if self._tar is not None:
            self._tar.drop()
            self._tar = None


class _Shard:
    """A tar that gets its name when it is complete; until then it is locked and ends in ``.tmp``.

    The system lets go of the lock when the process ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f"{path.name}.tmp")
        self.file = _locked(self.temporary)
        self.tar = TarWriter(self.file, encoder=False, mtime=0)
        self.write = self.tar.write

    def publish(self) -> None:
        """Make sure that the tar is on disk, and give it its name."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.temporary, self.path)
        self.file.close()

    def drop(self) -> None:
        """Remove what was written."""
        self.temporary.unlink(missing_ok=True)
        with open(os.devnull, "wb") as nowhere:  # what is buffered may not fit on the disk
            os.dup2(nowhere.fileno(), self.file.fileno())
        self.tar.close()
        self.file.close()


def _locked(path: Path) -> BinaryIO:
    """Open an empty file that no other process has open in this way."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(
                f"another process is writing {path}: let it end, or choose another output"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.seek(0)
                return file
        file.close()  # it was given its name in between
