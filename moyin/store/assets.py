"""Stores the assets of the Comfy API v2: uploads that their owner can find by content."""

from __future__ import annotations

from dataclasses import replace

from moyin.domain.artifact import Artifact, StoredArtifact, sanitize_file_name
from moyin.errors import ContentMismatch, ContentNotFound, IdempotencyMismatch
from moyin.store.artifacts import ArtifactStore, new_artifact_id

__all__ = ["Assets"]


class Assets:
    """Manages the artifacts of one owner at a time, and never reveals uploads of others."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    async def get(self, owner: str, artifact_id: str) -> StoredArtifact:
        """Return an artifact of the owner, an upload or an output of a job.

        Raises:
            ArtifactNotFound: the owner has no such artifact.
        """
        return await self._artifacts.get_stored(owner, artifact_id)

    async def add(
        self, owner: str, artifact: Artifact, *, expected: str | None
    ) -> tuple[StoredArtifact, bool]:
        """Add an upload whose bytes are stored; return it and whether its content is new.

        Args:
            expected: the client's hash of the content, as ``blake3:<hex>``; None: not given.

        Raises:
            ContentMismatch: the content has another hash.
            IdempotencyMismatch: the id, derived from an Idempotency-Key, exists.
        """
        assert artifact.blake3 is not None
        if expected not in (None, f"blake3:{artifact.blake3}"):
            raise ContentMismatch(
                f"expected_hash must be that of the uploaded bytes, blake3:{artifact.blake3}",
                field="expected_hash",
            )
        if await self._artifacts.id_exists(artifact.id):
            raise IdempotencyMismatch(
                "this Idempotency-Key was used before; use a new one", field="Idempotency-Key"
            )
        duplicate = await self._artifacts.find_by_content(owner, artifact.blake3)
        await self._artifacts.add(artifact, owner=owner)
        return await self.get(owner, artifact.id), duplicate is None

    async def find(self, owner: str, digest: str | None) -> StoredArtifact:
        """Return the owner's newest artifact with these bytes.

        Args:
            digest: blake3 in hex; None: the client sent an invalid hash.

        Raises:
            ContentNotFound: the owner has no artifact with these bytes.
        """
        stored = None if digest is None else await self._artifacts.find_by_content(owner, digest)
        if stored is None:
            raise ContentNotFound("you have no file with this hash")
        return stored

    async def copy(self, owner: str, digest: str | None, name: str | None) -> StoredArtifact:
        """Create another artifact with these bytes, named ``name``; None: with the same name.

        Raises:
            ContentNotFound: the owner has no artifact with these bytes.
        """
        original = (await self.find(owner, digest)).artifact
        new_name = original.name if name is None else sanitize_file_name(name, original.media_type)
        artifact = replace(original, id=new_artifact_id(), name=new_name)
        await self._artifacts.add(artifact, owner=owner)
        return await self.get(owner, artifact.id)

    async def delete(self, owner: str, artifact_id: str) -> None:
        """Mark an upload deleted; see `ArtifactStore.delete`."""
        await self._artifacts.delete(owner, artifact_id)
