"""How the models of the clip-art world are trained; run by tools/train_clipart.py."""

from importlib import import_module


def _stage(target: str):
    def run(*args, **kwargs):
        module, function = target.split(":")
        return getattr(import_module(f"ovseg.clipart.training.{module}"), function)(*args, **kwargs)

    return run


STAGES = {
    "text": _stage("text:train_text"),
    "autoencoder": _stage("autoencoder:train_autoencoder"),
    "unet": _stage("unet:train_unet"),
    "annotator": _stage("annotator:train_annotator"),
    "backbone": _stage("backbone:train_backbone"),
    "gates": _stage("world:gates"),
    "export": _stage("export:export"),
}
