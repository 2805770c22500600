"""ADE20K's layout, as MMSegmentation reads it."""

from __future__ import annotations

from ovseg.export.format import TRAIN, VAL, Format, Item

FOLDERS = {TRAIN: "training", VAL: "validation"}


class ADE(Format):
    """``images`` and ``annotations``, each with ``training`` and ``validation``.

    Ids are the vocabulary's, 0 background and 255 ignore. Read with ``reduce_zero_label``, as
    ADE20K is, class k becomes k - 1, and background is ignored too.
    """

    def add(self, item: Item) -> None:
        """Write image and label map as they are."""
        place = f"{FOLDERS[item.part]}/{item.key}.png"
        self.write(f"images/{place}", item.files["image.png"])
        self.write(f"annotations/{place}", item.files["mask.png"])

    def finish(self) -> dict:
        """Return no facts: the folders say it all."""
        return {}
