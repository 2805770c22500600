"""Real images with label maps, through MMSegmentation's own dataset classes and transforms."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from ovseg.data.base import IGNORED_UNSEEN, Stream
from ovseg.data.real_files import ReadingStep, check_list, check_mode
from ovseg.errors import importing_mmseg
from ovseg.seeded import seeded
from ovseg.structures import IGNORE, Batch
from ovseg.tuples import tuples
from ovseg.vocabulary import Vocabulary

OTHERS = ("ignore", "background")
SHOWN = 10
"""So many names are listed, the others counted."""


class MMSegDataset(Stream):
    """A dataset of MMSegmentation, its classes mapped to the vocabulary's by their names.

    Images of a batch keep their size: smaller ones are padded at the right and at the bottom, and
    the padding is ignored. Tests predict each without its padding.

    What random transforms draw is a function of (seed, epoch, number of the image), whatever the
    process, the batch and the workers; with transforms, every epoch of a training has new draws.

    Args:
        dataset: As in MMSegmentation's configs, without a pipeline: ``{type: PascalVOCDataset,
            data_root: ..., ann_file: ..., data_prefix: {img_path: ..., seg_map_path: ...}}``.
        transforms: Transforms of MMSegmentation between loading and packing, e.g. RandomCrop; a
            list of two numbers is given to them as a tuple.
        classes: Whose masks may be used: "all", or "seen", which makes the pixels of unseen classes
            ignore, never background.
        others: What becomes of classes that the vocabulary does not have: "ignore" or "background";
            `bind` warns of those that become background.
        limit: Take the first images only.
        leave_out_unseen: Take only images without a pixel of an unseen class; every label map is
            read once for it.
        data_root: Where the dataset lies, instead of what ``dataset`` says.
        seed: Seed of random transforms, >= 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dataset: dict,
        transforms: list[dict] | None = None,
        classes: str = "all",
        others: str = "ignore",
        limit: int | None = None,
        data_root: str | None = None,
        leave_out_unseen: bool = False,
        seed: int = 0,
    ) -> None:
        if classes not in ("all", "seen") or others not in OTHERS:
            raise ValueError(
                f"classes must be all or seen, others {' or '.join(OTHERS)}; got {classes!r} and "
                f"{others!r}"
            )
        if "pipeline" in dataset:
            raise ValueError("the dataset's pipeline is made here: give `transforms` instead")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {limit}")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}")
        root = {} if data_root is None else {"data_root": data_root}
        self.config, self.transforms = {**dataset, **root}, list(transforms or [])
        self.classes, self.others, self.limit = classes, others, limit
        self.leave_out_unseen, self.seed = leave_out_unseen, seed
        self.fresh = bool(self.transforms)  # a view is a sample, and has a position of its own

    def bind(self, vocabulary: Vocabulary) -> None:
        """Open the dataset, and map its classes to the vocabulary's.

        Raises:
            FileNotFoundError: If a folder, list, image or label map is missing.
            ValueError: If the dataset cannot be built, holds no image, or none that may be taken,
                has no class in common with the vocabulary, or a label map cannot be read.
        """
        super().bind(vocabulary)
        self.dataset = _build(self.config, self.transforms)
        self.positions = list(range(len(self.dataset)))[: self.limit]
        self._check_files()
        table = torch.full((IGNORE + 1,), IGNORE)
        names = self.dataset.metainfo.get("classes") or ()
        for number, name in enumerate(names):
            table[number] = self._id_of(name)
        self.table, self.count = table, len(names)
        if not ((table > 0) & (table < IGNORE)).any():
            raise ValueError(
                f"the dataset's classes ({', '.join(names[:5])}, ...) and vocabulary "
                f"{vocabulary.name!r} have none in common"
            )
        self._warn([name for name in names if name != "background" and not self._id_of(name)])
        if self.leave_out_unseen:
            self._leave_out(set(vocabulary.unseen))
        if self.classes == "seen" or self.leave_out_unseen:
            table[torch.isin(table, torch.tensor(vocabulary.unseen))] = IGNORE

    def describe(self) -> dict:
        """Return the arguments."""
        kept = {"dataset": self.config, "transforms": self.transforms, "classes": self.classes}
        kept |= {"others": self.others, "limit": self.limit}
        draws = {"seed": self.seed} if self.transforms else {}
        return {**super().describe(), **kept, "leave_out_unseen": self.leave_out_unseen, **draws}

    def taught_classes(self) -> set[int]:
        """Return the classes that are not ignored."""
        return {int(i) for i in self.table.unique() if 0 < i < IGNORE}

    def practices(self) -> set[str]:
        """Return whether pixels of unseen classes are ignored."""
        ignored = self.classes == "seen" and not self.leave_out_unseen
        return {IGNORED_UNSEEN} if ignored else set()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Read these images and label maps; after the last the first follows, with new draws."""
        read = [self._view(int(p)) for p in positions]
        height = max(labels.shape[0] for _, labels, _ in read)
        width = max(labels.shape[1] for _, labels, _ in read)

        def grown(values: Tensor, fill: int) -> Tensor:
            room = (0, width - values.shape[-1], 0, height - values.shape[-2])
            return pad(values, room, value=fill)

        return Batch(
            indices=torch.as_tensor(list(positions), dtype=torch.long),
            images=torch.stack([grown(image, 0) for image, _, _ in read]),
            labels=torch.stack([grown(labels, IGNORE) for _, labels, _ in read]),
            sizes=torch.tensor([labels.shape for _, labels, _ in read]),
            original_sizes=torch.tensor([size for _, _, size in read]),
        )

    def _id_of(self, name: str) -> int:
        if name == "background":
            return 0
        try:
            return self.vocabulary.id_of(name)
        except ValueError:
            return 0 if self.others == "background" else IGNORE

    def _warn(self, lost: Sequence[str]) -> None:
        """Warn of classes that become background, some perhaps unseen ones under another word."""
        if lost:
            more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
            warnings.warn(
                f"{len(lost)} of the dataset's classes become background: "
                f"{', '.join(lost[:SHOWN])}{more}; if one of them is a class of the vocabulary "
                "under another word, give that as a synonym",
                stacklevel=3,
            )

    def _view(self, position: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return what `_read` does of a position, in the draws that belong to it."""
        with seeded((self.seed, position)):
            return self._read(self.positions[position % len(self)])

    def _read(self, position: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return an image ``(3, H, W)`` uint8 RGB, its labels ``(H, W)`` and its file's size."""
        check_mode(self.dataset.get_data_info(position)["seg_map_path"])
        packed = self.dataset.prepare_data(position)
        sample = packed["data_samples"]
        labels = sample.gt_sem_seg.data[0].long()
        image = packed["inputs"].flip(0)  # from OpenCV's BGR
        if image.shape[1:] != labels.shape:
            raise ValueError(
                f"{sample.img_path} is {tuple(image.shape[1:])}, its label map "
                f"{tuple(labels.shape)}: they must have the same size"
            )
        wrong = labels[(labels >= self.count) & (labels != IGNORE)].unique()
        if len(wrong):
            first = int(self.dataset.reduce_zero_label)  # the file's id of the first class
            ids = ", ".join(str(i + first) for i in wrong.tolist())
            raise ValueError(
                f"{sample.seg_map_path} has ids of no class: {ids}; those of the dataset's "
                f"{self.count} classes are {first}..{self.count - 1 + first}, {IGNORE} is ignore"
            )
        return image, self.table[labels], sample.ori_shape

    def _check_files(self) -> None:
        infos = [self.dataset.get_data_info(position) for position in self.positions]
        for key, other in (("img_path", "seg_map_path"), ("seg_map_path", "img_path")):
            lost = [i for i in infos if not Path(i.get(key) or "?").is_file()]
            if lost:
                first = lost[0]
                raise FileNotFoundError(
                    f"{len(lost)} of the dataset's files are missing, the first is "
                    f"{first.get(key)}, which belongs to {first.get(other)}"
                )
        alone = sorted(self._maps().difference(Path(i["seg_map_path"]) for i in infos))
        if alone and self.limit is None:
            raise FileNotFoundError(
                f"{len(alone)} of the dataset's label maps have no image, the first is {alone[0]}: "
                "add the images, or give a list of names (ann_file)"
            )

    def _leave_out(self, unseen: set[int]) -> None:
        """Leave out images with a pixel of these classes."""
        load, ids = self.dataset.pipeline.transforms[1], self.table.numpy()
        self.positions = [
            position
            for position in tqdm(self.positions, desc="label maps", disable=None)
            if unseen.isdisjoint(
                ids[np.unique(load(self.dataset.get_data_info(position))["gt_seg_map"])].tolist()
            )
        ]
        if not self.positions:
            raise ValueError(
                "every image of the dataset has a pixel of an unseen class: leave_out_unseen "
                "leaves none, take classes: seen instead"
            )

    def _maps(self) -> set[Path]:
        """Return the label maps of a dataset that takes all files of its folders; else none."""
        if Path(self.dataset.ann_file or ".").is_file():
            return set()
        folder = Path(self.dataset.data_prefix["seg_map_path"])
        return set(folder.rglob(f"*{self.dataset.seg_map_suffix}"))


def _build(dataset: Mapping[str, Any], transforms: Sequence[dict]) -> Any:
    check_list(dataset)
    with importing_mmseg(), redirect_stdout(StringIO()):  # it prints that a client is absent
        import mmseg.datasets  # noqa: F401 - registers datasets and transforms
        from mmcv.transforms import LoadImageFromFile
        from mmengine.registry import DefaultScope
        from mmseg.datasets.transforms import LoadAnnotations
        from mmseg.registry import DATASETS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = [
            ReadingStep(LoadImageFromFile(), "img_path"),
            ReadingStep(LoadAnnotations(), "seg_map_path"),
            *(tuples(dict(step)) for step in transforms),
            {"type": "PackSegInputs"},
        ]
        with DefaultScope.overwrite_default_scope("mmseg"):
            try:
                return DATASETS.build({**dataset, "pipeline": pipeline})
            except (AssertionError, FileNotFoundError) as error:
                root = dataset.get("data_root") or "."
                raise FileNotFoundError(
                    f"no {dataset.get('type')} in {Path(root).absolute()}: {_what(error, dataset)}"
                ) from None
            except (KeyError, TypeError, ValueError) as error:
                root = Path(dataset.get("data_root") or ".").absolute()
                raise ValueError(
                    f"cannot build {dataset.get('type')} in {root} (is it empty?): {error}"
                ) from None


def _what(error: Exception, dataset: Mapping[str, Any]) -> str:
    wanted = {k: dataset[k] for k in ("ann_file", "data_prefix") if k in dataset}
    return str(error) or f"it needs {wanted}"
