"""A Hub in a folder: what huggingface_hub would download from and upload to."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import httpx2
import huggingface_hub
from huggingface_hub import hub_mixin
from huggingface_hub.errors import RepositoryNotFoundError


def http_error(kind: type[Exception], text: str) -> Exception:
    """Make an error as huggingface_hub raises it: the status first, then several lines."""
    response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.test"))
    return kind(f"404 Client Error. (Request ID: 1)\n\n{text}\nPlease make sure", response=response)


class FakeHub:
    """Repositories are folders ``root/remote/OWNER/NAME``; what is asked of it is recorded."""

    def __init__(self, root: Path) -> None:
        self.remote, self.cache = root / "remote", root / "cache"
        self.asked: list[dict] = []
        self.uploads: list[dict] = []

    def snapshot_download(self, repo: str, **options) -> str:
        """Copy the files that match, as the Hub's client does."""
        self.asked.append({"repo": repo, **options})
        if not (self.remote / repo).is_dir():
            raise http_error(RepositoryNotFoundError, "Repository Not Found for url: x.")
        folder = self.cache / repo
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.remote / repo).iterdir():
            if any(fnmatch(path.name, pattern) for pattern in options["allow_patterns"]):
                shutil.copy(path, folder)
        return str(folder)

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        """Make an empty repository."""
        (self.remote / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, repo_id: str, folder_path: Path, **options) -> str:
        """Take a folder's files."""
        self.uploads.append({"repo_id": repo_id, **options})
        shutil.copytree(folder_path, self.remote / repo_id, dirs_exist_ok=True)
        return f"https://hub.test/{repo_id}/commit/1"


def install(hub: FakeHub, monkeypatch) -> FakeHub:
    """Put a fake Hub in the place of the real one."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(hub_mixin, "HfApi", lambda token: hub)
    return hub
