"""Write what `predict` yields as shards; killed at any moment, it goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.manifest import finish, pending, prepare, read_manifest
from ovseg.data.shard_file import shard_name
from ovseg.data.shard_format import encode_sample, samples_of
from ovseg.data.shard_writing import Rejected, Shard, telling_where
from ovseg.data.sharing import claim, open_shards, publish, what_is_left
from ovseg.data.yields import never_asked
from ovseg.report.terminal import show_yield
from ovseg.structures import IGNORE, Batch


class ShardWriter(Callback):
    """Write the predict streams of a `SyntheticDataModule` to folders of WebDataset tars.

    A shard is written as ``.tmp`` and renamed when it is complete, so a file under its final name
    is done; only the others are made. `dataset.json` is written when none is missing. Bytes do not
    depend on the number of processes, on their order or on interruptions. Processes and jobs that
    write the same folder share the work: each claims a shard before it makes it. What a stream's
    filter rejects never stands among its shards; a file beside each shard tells what and why.

    Args:
        output: Folder of the dataset; with several streams ``{name}`` in it stands for the name of
            the stream. Another dataset in the folder is refused.
        soft: Store the annotator's soft masks too.
        soft_stride: Image pixels per pixel of a soft mask, in each direction; that of the finest
            tap by default. With 1 they lose nothing, and `ovseg refilter` makes exactly the label
            maps of another threshold.
        rejected: "drop" stores what is known of a rejected sample and why; "apart" all of it.

    Attributes:
        wants_more: Whether another `predict` is to follow, once one has ended: a quota asks for
            more, or another process has left a shard.

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
        self._claimed: dict[tuple[int, int], Shard] = {}
        self._begun: tuple[int, int] | None = None

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
        self._check(data)
        self._folders = [Path(self.output.replace("{name}", name)) for name in data.predict]
        requests = [self._request(data, name) for name in data.predict]
        self._configs = [request["config"] for request in requests]
        shards = error = None
        if trainer.is_global_zero:
            try:
                if not self.wants_more:  # else it goes on in what it has prepared
                    self._prepare(requests)
                shards = [self._open(trainer, place) for place in range(len(requests))]
            except (ValueError, OSError) as raised:
                error = raised
        shards, error = trainer.strategy.broadcast((shards, error))
        if error is not None:  # on every rank, so that none waits for the others
            raise error
        data.pending = dict(zip(data.predict, shards, strict=True))
        data.claim = self._claim

    def _check(self, data: SyntheticDataModule) -> None:
        """Refuse what cannot be written.

        Raises:
            ValueError: If something cannot be.
        """
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
        if self.soft and self.soft_stride is None and data.feature_spec is None:
            raise ValueError(
                "soft masks have the size of the finest tap, and without data.backbone there is "
                "none: set soft_stride of ShardWriter, 1 for the image's size"
            )

    def _prepare(self, requests: Iterable[dict]) -> None:
        for folder, request in zip(self._folders, requests, strict=True):
            prepare(folder, request)
            if not pending(folder, request["config"]):
                print(f"{folder} has all its shards: nothing to generate")

    def _request(self, data: SyntheticDataModule, name: str) -> dict:
        """Return what decides every byte of a stream's folder, as it is read back."""
        request = data.describe(name)
        request["config"]["soft"] = self.soft
        request["config"]["soft_stride"] = self.soft_stride if self.soft else None
        filtered = data.predict[name].filter is not None
        request["config"]["rejected"] = self.rejected if filtered else None
        return json.loads(json.dumps(request))

    def _open(self, trainer: Trainer, place: int) -> list[int]:
        """Return the shards of a stream that can be made now."""
        job = trainer.datamodule.job_index, trainer.datamodule.num_jobs
        return open_shards(self._folders[place], self._configs[place], trainer.world_size, *job)

    def _claim(self, place: int, number: int) -> bool:
        """Take a shard of a stream; return whether it is ours to make."""
        folder = self._folders[place]
        with telling_where(folder / shard_name(number)):
            shard = claim(folder, self._configs[place], number)
        if shard is not None:
            self._claimed[place, number] = shard
        return shard is not None

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
            ValueError: If a batch is not the next part of a shard that was claimed.
            OSError: If the disk is full; the finished shards are kept.
        """
        if not isinstance(outputs, Batch) or len(outputs) == 0:
            return
        self._drop(before=dataloader_idx)  # where the trainer limits the batches
        place = outputs.position
        shard = place and (dataloader_idx, place.shard)
        if shard not in self._claimed or self._begun != (None if place.first else shard):
            raise ValueError(
                f"batch {outputs.indices.tolist()} is not the next part of a shard: the predict "
                "loader must be that of SyntheticDataModule"
            )
        data, folder = trainer.datamodule, self._folders[dataloader_idx]
        stream = list(data.predict.values())[dataloader_idx]
        size = None
        if self.soft:
            stride = self.soft_stride or min(t.stride for t in data.feature_spec.taps.values())
            size = tuple(n // stride for n in outputs.images.shape[-2:])
        self._begun = shard
        with telling_where(folder / shard_name(place.shard)):
            for sample in samples_of(outputs, size, stream.filter):
                self._claimed[shard].write(encode_sample(sample), sample.record)
            if place.last:
                publish(folder, self._claimed[shard])
                del self._claimed[shard]
                self._begun = None

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the dataset if this process is the last to write its shards."""
        self._drop()
        trainer.strategy.barrier("all shards are written")
        self.wants_more = False
        if trainer.is_global_zero:
            self.wants_more = self._finish(trainer)
        self.wants_more = trainer.strategy.broadcast(self.wants_more)

    def _finish(self, trainer: Trainer) -> bool:
        """Describe what is complete; return whether there is more that can be made now."""
        more, limit = False, trainer.limit_predict_batches
        whole = isinstance(limit, float) and limit == 1.0  # the int 1 is a single batch
        asked = trainer.datamodule.pending.values()
        streams = zip(self._folders, self._configs, asked, strict=True)
        for place, (folder, config, numbers) in enumerate(streams):
            if finish(folder, config):
                if numbers:
                    _tell(folder, config)
            elif whole and self._open(trainer, place):
                more = True
            else:
                print(what_is_left(folder, config))
        return more

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove what was not completed."""
        self._drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove what was not completed, because the trainer limits the batches."""
        self._drop()

    def _drop(self, before: int | None = None) -> None:
        """Remove what was not completed, of all streams or of those before one."""
        for shard in [s for s in self._claimed if before is None or s[0] < before]:
            self._claimed.pop(shard).drop()
            if shard == self._begun:
                self._begun = None


def _tell(folder: Path, config: dict) -> None:
    """Print the yield of a dataset that has just been completed."""
    counted = read_manifest(folder)["yield"]
    if config["filter"] is not None:
        show_yield(str(folder), counted)
    if config.get("quota") is not None and (never := never_asked(config, counted)):
        names = ", ".join(never)
        print(f"{folder} has no samples of {names} for its quota: no prompt asked for them")
