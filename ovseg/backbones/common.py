"""What every pipeline of diffusers shares as a backbone: sampling, reading, encoding, embedding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ovseg.backbones.autoencoder import check_images, decode_images, encode_images
from ovseg.backbones.configured import ConfiguredBackbone
from ovseg.backbones.encoders import Encoded, TextEncoders
from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.inversion import invert
from ovseg.backbones.placement import Turns
from ovseg.backbones.reader import FeatureReader
from ovseg.backbones.schedule import (
    add_noise,
    draw_noise,
    guide,
    scale_input,
    take_step,
    tapped_calls,
)
from ovseg.backbones.text import check_names, check_prompt
from ovseg.structures import DiffusionSample, Features, Request


class DiffusersBackbone(ConfiguredBackbone):
    """A frozen diffusers pipeline; see `ConfiguredBackbone` for its arguments.

    Subclasses know one kind of denoiser.
    """

    TEXT: Callable[[PipelineFiles], TextEncoders]
    """Makes the text encoders of this kind of pipeline, without weights."""

    _loaded = False
    _turns: Turns | None = None  # of parts that are offloaded

    # What a kind of denoiser decides

    @abstractmethod
    def denoise(self, latents: Tensor, timestep: Tensor, condition: dict) -> Tensor:
        """Call the denoiser on ``(N, C, h, w)``; the output has the same shape."""

    @abstractmethod
    def condition(self, text: Encoded) -> dict:
        """Return the denoiser's other inputs for N encoded sentences."""

    @abstractmethod
    def reader(self) -> FeatureReader:
        """Hook what is to be read onto the loaded denoiser."""

    # Weights

    @property
    def device(self) -> torch.device:
        """Where the model is, or will be once loaded."""
        return self._anchor.device

    def load(self) -> None:
        if self._loaded:
            return
        self._rehearse()
        self._read_tokenizers()
        self.text.load(self.dtype)
        upcast = self.dtype == torch.float16 and self.config.vae.get("force_upcast")
        self.vae = self.files.load("vae", torch.float32 if upcast else self.dtype)
        if self.vae_tiling:
            self.vae.enable_tiling()
        self.denoiser = self.files.load(self.config.PART, self.dtype)
        self._reader = self.reader()  # before compiling: hooks that come later never fire
        if self.compile_options:
            options = self.compile_options if isinstance(self.compile_options, dict) else {}
            self.denoiser.compile(**options)
        self.requires_grad_(False).eval()
        parts = [*self.text.encoders.values(), self.denoiser, self.vae]
        if self.offload:
            self._turns = Turns(parts, self.device)
        else:
            for part in parts:
                part.to(self.device)
        self._loaded = True

    def _apply(self, fn: Callable, recurse: bool = True) -> DiffusersBackbone:
        """Move everything, each tensor in its own dtype; parts that are offloaded move when called.

        Raises:
            ValueError: If it would be cast: the weights are loaded in the dtype of the constructor.
        """
        own, asked = self.dtype, fn(torch.empty(0, dtype=self.dtype)).dtype
        if asked != own:
            wanted, kept = (str(dtype).removeprefix("torch.") for dtype in (asked, own))
            raise ValueError(
                f"a backbone of dtype {kept} cannot be cast to {wanted}: build it with "
                f"dtype={wanted!r}"
            )

        def move(tensor: Tensor) -> Tensor:  # some are kept in float32 among lower ones
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse=recurse and not self.offload)
        if self._loaded:
            self._reader.forget()
        if self._turns is not None:
            self._turns.rest()
            self._turns.device = self.device
        return self

    def train(self, mode: bool = True) -> DiffusersBackbone:
        """Stay in eval mode whatever is asked for."""
        return super().train(False)

    # The contract

    def check_request(self, request: Request) -> None:
        self._read_tokenizers()
        check_names(request)
        self.text.positions(request)
        check_prompt(request)
        self.text.check(request)

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> DiffusionSample:
        requests, tokens = self._prepare(requests)
        for request in requests:
            check_prompt(request)
            self.text.check(request)
        scale = 1.0 if self.config.embeds_guidance else self.guidance_scale
        branches = 2 if self.both_branches or scale > 1 else 1
        scheduler = self._schedule(self.device)
        kept = tapped_calls(len(scheduler.timesteps), self.tap_steps)
        inputs, readings = {}, {}
        with self._at_work(), self._reader.watching(tokens, self.config.latent_size):
            told = self._encode(requests, branches)
            generators = [torch.Generator().manual_seed(r.seed) for r in requests]
            latents = self._noise(generators) * getattr(scheduler, "init_noise_sigma", 1.0)
            for call, timestep in enumerate(scheduler.timesteps):
                entering = scale_input(scheduler, latents, timestep)
                if call in kept:
                    inputs[call] = entering.float()
                    output, readings[call] = self._reader.read(entering, timestep, told, branches)
                else:
                    output = self._reader.call(entering, timestep, told, branches)
                output = guide(output, len(requests), scale)
                latents = take_step(scheduler, output, timestep, latents, generators)
            images = decode_images(self.vae, latents)
        features = self._reader.collect([readings[call] for call in kept])
        stacked = torch.stack([inputs[call] for call in kept], dim=1)
        entities = self.entities(requests)
        return DiffusionSample(requests, images, stacked, self.timesteps, entities, features)

    @torch.no_grad()
    def features(self, latents: Tensor, timesteps: Tensor, requests: Sequence[Request]) -> Features:
        requests, tokens = self._prepare(requests)
        if latents.ndim != 5 or latents.shape[:2] != (len(requests), len(timesteps)):
            raise ValueError(
                f"latents must be (B, S, C, h, w) with B = {len(requests)} requests and S = "
                f"{len(timesteps)} timesteps, got {tuple(latents.shape)}"
            )
        if tuple(latents.shape[2:]) != self.config.latent_shape:
            raise ValueError(
                f"latents (C, h, w) of this model are {self.config.latent_shape} at an image_size "
                f"of {self.image_size}, got {tuple(latents.shape[2:])}"
            )
        latents = latents.to(self.device, self.dtype)
        branches = 1 + self.both_branches
        with self._at_work(), self._reader.watching(tokens, self.config.latent_size):
            told = self._encode(requests, branches)
            readings = [
                self._reader.read(latents[:, step], timestep, told, branches)[1]
                for step, timestep in enumerate(timesteps.to(self.device))
            ]
        return self._reader.collect(readings)

    @torch.no_grad()
    def encode_image(self, images: Tensor, requests: Sequence[Request]) -> Tensor:
        requests, _ = self._prepare(requests)
        for request in requests:
            self.text.check(request)
        check_images(images, len(requests), self.image_size)
        with self._at_work():
            clean = encode_images(self.vae, images.to(self.device), self.dtype)
            reach = self._invert if self.inversion_steps else self._add_noise
            return torch.stack(reach(clean, requests), dim=1).float()

    @torch.no_grad()
    def embed(self, requests: Sequence[Request]) -> Tensor:
        names = [[tokens.mean(dim=0) for tokens in row] for row in self._tokens(requests)]
        most = max([1, *map(len, names)])
        text = self._zeros(len(names), most, self.text_width)
        for row, found in enumerate(names):
            for column, name in enumerate(found):
                text[row, column] = name
        return text

    @torch.no_grad()
    def embed_tokens(self, requests: Sequence[Request]) -> Tensor:
        names = self._tokens(requests)
        most = max([1, *map(len, names)])
        length = max([1, *(len(tokens) for row in names for tokens in row)])
        text = self._zeros(len(names), most, length, self.text_width)
        for row, found in enumerate(names):
            for column, tokens in enumerate(found):
                text[row, column, : len(tokens)] = tokens
        return text

    # Parts of the above

    def _tokens(self, requests: Sequence[Request]) -> list[list[Tensor]]:
        """Return the embeddings ``(T, D)`` of each name of each request."""
        self.load()
        for request in requests:
            check_names(request)
        with self._at_work():
            return [self._names.of(self.text, request) for request in requests]

    def _read_tokenizers(self) -> None:
        """Make the text encoders, as yet without weights."""
        if not hasattr(self, "text"):
            self.text = self.TEXT(self.files)

    def _prepare(self, requests: Sequence[Request]) -> tuple[list[Request], list[list[list[int]]]]:
        """Load the weights, and find each entity's tokens, which also checks the prompts."""
        requests = list(requests)
        if not requests:
            raise ValueError("there must be at least one request")
        for request in requests:
            check_names(request)
        self.load()
        return requests, [self.text.positions(request) for request in requests]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def _rehearse(self) -> None:
        """Hook all that is read onto a denoiser without weights.

        Raises:
            ValueError: If something is named that it does not have.
        """
        self.feature_spec  # noqa: B018 - tells of taps and probes
        if self.attention:
            self.denoiser, _ = self.config.meta()
            try:
                self.reader()
            finally:
                del self.denoiser

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Compute in the weights' own precision; of offloaded parts the last stays where it is.

        If that fails, for want of memory for one, it goes back.
        """
        try:
            with torch.autocast(self.device.type, enabled=False):
                yield
        except BaseException:
            if self._turns is not None:
                self._turns.rest()
            raise

    def _encode(self, requests: list[Request], branches: int) -> dict:
        """Return the condition of all branches, the unconditional one first."""
        text = self.text.encode([request.prompt for request in requests])
        if branches == 2:
            other = self.text.without_text([request.negative_prompt for request in requests])
            text = other.then(text)
        return self.condition(text)

    def _add_noise(self, clean: Tensor, requests: list[Request]) -> list[Tensor]:
        """Noise clean latents to the tapped steps, each from its request's seed."""
        noise = self._noise([torch.Generator().manual_seed(r.seed) for r in requests])
        return [  # a scheduler keeps count of its steps: a fresh one for each
            add_noise(self._schedule(self.device), clean, noise, timestep)
            for timestep in self.timesteps.to(self.device)
        ]

    def _invert(self, clean: Tensor, requests: list[Request]) -> list[Tensor]:
        """Follow the prompts' sampling, without guidance, back to the tapped steps."""
        denoise = partial(self.denoise, condition=self._encode(requests, 1))
        timesteps = self.timesteps.to(self.device)
        scheduler = self._schedule(self.device)
        return invert(scheduler, denoise, clean, timesteps, self.inversion_steps)

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        return draw_noise(self.config.latent_shape, generators, (self.device, self.dtype))
