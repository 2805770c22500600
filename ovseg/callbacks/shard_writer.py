"""Write what `predict` yields as shards; killed at any moment, it goes on where it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.manifest import done_shards, finish, pending, prepare, read_manifest
from ovseg.data.shard_format import encode_sample, samples_of
from ovseg.data.shard_writing import Rejected, Shard, telling_where
from ovseg.report.terminal import show_yield
from ovseg.structures import IGNORE, Batch


class ShardWriter(Callback):
    """Write the predict streams of a `SyntheticDataModule` to folders of WebDataset tars.

    A shard is written as ``.tmp`` and renamed when it is complete, so a file under its final name
    is done; only the others are made. `dataset.json` is written when none is missing. Bytes do not
    depend on the number of processes, on their order or on interruptions. What a stream's filter
    rejects never stands among its shards; a file beside each shard tells what and why.

    Args:
        output: Folder of the dataset; with several streams ``{name}`` in it stands for the name of
            the stream. Another dataset in the folder is refused.
        soft: Store the annotator's soft masks too.
        soft_stride: Image pixels per pixel of a soft mask, in each direction; that of the finest
            tap by default. With 1 they lose nothing, and `ovseg refilter` makes exactly the label
            maps of another threshold.
        rejected: "drop" stores what is known of a rejected sample and why; "apart" all of it.

    Attributes:
        wants_more: Whether a quota asks for another `predict`, once one has ended.

    Raises:
        ValueError: If soft_stride is not positive.
    """

    def __init__(
        self,
        output: str,
        soft: bool = False,
        soft_stride: int | None = None,
        rejected: Rejected = "drop",
    ) -> None:
        if soft_stride is not None and soft_stride < 1:
            raise ValueError(f"soft_stride must be >= 1 or null, got {soft_stride}")
        self.output = output
        self.soft = soft
        self.soft_stride = soft_stride
        self.rejected = rejected
        self.wants_more = False
        self._folders: list[Path] = []
        self._configs: list[dict] = []
        self._shard: Shard | None = None

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
        requests = [self._request(data, name) for name in data.predict]
        self._configs = [request["config"] for request in requests]
        shards = error = None
        if trainer.is_global_zero:
            try:
                if not self.wants_more:  # else it goes on in what it has prepared
                    for folder, request in zip(self._folders, requests, strict=True):
                        prepare(folder, request)
                shards = self._pending(trainer)
            except (ValueError, PermissionError) as raised:
                error = raised
        shards, error = trainer.strategy.broadcast((shards, error))
        if error is not None:  # on every rank, so that none waits for the others
            raise error
        data.pending = dict(zip(data.predict, shards, strict=True))
        for folder, numbers in zip(self._folders, shards, strict=True):
            if not (numbers or self.wants_more):
                trainer.print(f"{folder} has all its shards: nothing to generate")

    def _request(self, data: SyntheticDataModule, name: str) -> dict:
        """Return what decides every byte of a stream's folder."""
        request = data.describe(name)
        request["config"]["soft"] = self.soft
        request["config"]["soft_stride"] = self.soft_stride if self.soft else None
        filtered = data.predict[name].filter is not None
        request["config"]["rejected"] = self.rejected if filtered else None
        return request

    def _pending(self, trainer: Trainer) -> list[list[int]]:
        """Return the pending shards of each stream, one for each process in search of a quota."""
        folders = zip(self._folders, self._configs, strict=True)
        return [pending(folder, config, trainer.world_size) for folder, config in folders]

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
        if place is None or (self._shard is None) != place.first:
            raise ValueError(
                f"batch {outputs.indices.tolist()} is not the next part of a shard: the predict "
                "loader must be that of SyntheticDataModule"
            )
        data, folder = trainer.datamodule, self._folders[dataloader_idx]
        config = self._configs[dataloader_idx]
        stream = list(data.predict.values())[dataloader_idx]
        size = None
        if self.soft:
            finest = min(tap.stride for tap in data.feature_spec.taps.values())
            size = tuple(n // (self.soft_stride or finest) for n in outputs.images.shape[-2:])
        with telling_where(folder, place.shard):
            if place.first:
                self._shard = Shard(folder, place.shard, config["rejected"])
            for sample in samples_of(outputs, size, stream.filter):
                self._shard.write(encode_sample(sample), sample.record.kept)
            if place.last:
                self._shard.publish()
                self._shard = None

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the dataset once every process has written its shards."""
        trainer.strategy.barrier("all shards are written")
        self.wants_more = False
        if trainer.is_global_zero:
            self.wants_more = self._finish(trainer.datamodule.pending.values())
        self.wants_more = trainer.strategy.broadcast(self.wants_more)

    def _finish(self, asked: Iterable[Sequence[int]]) -> bool:
        """Describe what is complete; return whether all that was asked for is done, but not enough.

        Args:
            asked: The shards of each stream that this `predict` was to make.
        """
        more = False
        for folder, config, numbers in zip(self._folders, self._configs, asked, strict=True):
            if finish(folder, config):
                if numbers and config["filter"] is not None:
                    show_yield(str(folder), read_manifest(folder)["yield"])
            elif done_shards(folder, config).issuperset(numbers):
                more = True
            else:
                print(f"{folder} lacks some shards: run `predict` again")
        return more

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove a shard that was not completed."""
        self._drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove a shard that was not completed, because the trainer limits the batches."""
        self._drop()

    def _drop(self) -> None:
        if self._shard is not None:
            self._shard.drop()
            self._shard = None
