"""Uploads that their owner finds again by their content: the assets of the Comfy API v2."""

from __future__ import annotations

from dataclasses import replace

from moyin.domain import media
from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.errors import ContentMismatch, ContentNotFound, IdempotencyMismatch
from moyin.store.artifacts import ArtifactStore, new_artifact_id

__all__ = ["Assets"]


class Assets:
    """What the Comfy API v2 does with artifacts. Nobody learns what others have uploaded."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    async def get(self, owner: str, artifact_id: str) -> StoredArtifact:
        """The artifact, uploaded or made by a job.

        Raises:
            ArtifactNotFound: there is none, or it is somebody else's.
        """
        return await self._artifacts.stored(owner, artifact_id)

    async def add(
        self, owner: str, artifact: Artifact, *, expected: str | None
    ) -> tuple[StoredArtifact, bool]:
        """Enter an upload whose bytes are stored; returns it and whether they are new to ``owner``.

        Args:
            expected: ``blake3:<hex>``, if the client knows what it meant to send.

        Raises:
            ContentMismatch: something else came.
            IdempotencyMismatch: the id, which an Idempotency-Key gave, is taken.
        """
        assert artifact.blake3 is not None
        if expected not in (None, f"blake3:{artifact.blake3}"):
            raise ContentMismatch(
                f"these bytes have the hash blake3:{artifact.blake3}", field="expected_hash"
            )
        if await self._artifacts.taken(artifact.id):
            raise IdempotencyMismatch(
                "this Idempotency-Key was used; it works once", field="Idempotency-Key"
            )
        known = await self._artifacts.with_content(owner, artifact.blake3)
        await self._artifacts.add(artifact, owner=owner)
        return await self.get(owner, artifact.id), known is None

    async def find(self, owner: str, digest: str | None) -> StoredArtifact:
        """An upload of the owner's with these bytes; ``digest``: blake3 in hex, None: nonsense.

        Raises:
            ContentNotFound: there is none, whatever others have.
        """
        found = None if digest is None else await self._artifacts.with_content(owner, digest)
        if found is None:
            raise ContentNotFound("you have no file with this hash here")
        return found

    async def again(self, owner: str, digest: str | None, name: str | None) -> StoredArtifact:
        """Another artifact of the same bytes, called ``name``.

        Raises:
            ContentNotFound: there are none, whatever others have.
        """
        found = (await self.find(owner, digest)).artifact
        called = found.name if name is None else media.clean_name(name, found.media_type)
        artifact = replace(found, id=new_artifact_id(), name=called)
        await self._artifacts.add(artifact, owner=owner)
        return await self.get(owner, artifact.id)

    async def delete(self, owner: str, artifact_id: str) -> None:
        """Take an upload away from its owner.

        Raises:
            ArtifactNotFound: there is none, or it is somebody else's.
            ArtifactInUse: it is the output of a job.
        """
        await self._artifacts.delete(owner, artifact_id)
