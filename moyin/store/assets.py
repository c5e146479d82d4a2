"""Stores the assets of the Comfy API v2: artifacts that their owner can find by content."""

from __future__ import annotations

from dataclasses import replace

from moyin.domain.artifact import Artifact, StoredArtifact, sanitize_file_name
from moyin.errors import ContentMismatch, ContentNotFound, IdempotencyMismatch
from moyin.store.artifacts import ArtifactStore, generate_artifact_id


class AssetStore:
    """Reads and writes artifacts by id or content hash, and never reveals those of other owners."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    async def get(self, owner: str, artifact_id: str) -> StoredArtifact:
        """Return an uploaded or rendered artifact of the owner, or raise `ArtifactNotFound`."""
        return await self._artifacts.get_with_origin(owner, artifact_id)

    async def require_room(self, owner: str, size: int) -> None:
        """Raise `FileStorageFull` if an upload of ``size`` bytes would exceed the tenant's maximum."""
        await self._artifacts.require_room(owner, size)

    async def add(
        self, owner: str, artifact: Artifact, *, expected_hash: str | None
    ) -> tuple[StoredArtifact, bool]:
        """Store the metadata of an upload, whose bytes are already stored as a blob.

        Args:
            expected_hash: the hash that the client expects, as ``blake3:<hex>``, or None.

        Returns:
            The stored artifact, and whether its content is new to the owner.

        Raises:
            ContentMismatch: the content has another hash than expected.
            IdempotencyMismatch: the client's Idempotency-Key, from which the artifact's id is
                derived, was used for another upload before.
        """
        assert artifact.blake3 is not None
        if expected_hash not in (None, f"blake3:{artifact.blake3}"):
            raise ContentMismatch(
                f"expected_hash must be the hash of the uploaded file, blake3:{artifact.blake3}",
                field="expected_hash",
            )
        if await self._artifacts.is_id_used(artifact.id):
            raise IdempotencyMismatch(
                "Idempotency-Key was already used for another upload; use a new key",
                field="Idempotency-Key",
            )
        duplicate = await self._artifacts.find_by_content(owner, artifact.blake3)
        await self._artifacts.add(artifact, owner=owner)
        return await self.get(owner, artifact.id), duplicate is None

    async def find(self, owner: str, digest: str | None) -> StoredArtifact:
        """Return the owner's newest artifact with this BLAKE3 digest, or raise `ContentNotFound`.

        ``digest`` is None if the client sent an invalid hash, which no artifact has.
        """
        artifact = None if digest is None else await self._artifacts.find_by_content(owner, digest)
        if artifact is None:
            raise ContentNotFound(
                "you have no file with this hash, which must be blake3:<64 hex digits>; upload the file"
            )
        return artifact

    async def copy(self, owner: str, digest: str | None, name: str | None) -> StoredArtifact:
        """Create an artifact that has the same content as an existing artifact, and return it.

        Args:
            digest: the BLAKE3 digest of the content, or None if the client sent an invalid hash.
            name: the file name of the new artifact; None copies the existing name.

        Raises:
            ContentNotFound: the owner has no artifact with this digest.
        """
        original = (await self.find(owner, digest)).artifact
        new_name = original.name if name is None else sanitize_file_name(name, original.media_type)
        artifact = replace(original, id=generate_artifact_id(), name=new_name)
        await self._artifacts.add(artifact, owner=owner)
        return await self.get(owner, artifact.id)

    async def delete(self, owner: str, artifact_id: str) -> None:
        """Mark an upload as deleted; raise the same errors as `ArtifactStore.delete`."""
        await self._artifacts.delete(owner, artifact_id)
