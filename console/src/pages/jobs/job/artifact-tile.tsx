import { ActionIcon, Anchor, Box, Group, Text } from "@mantine/core";
import { IconDownload, IconFile } from "@tabler/icons-react";

import { useFormat, useStrings } from "#/language";

import { strings } from "../strings";
import type { Artifact } from "../types";

const SIZE = 176;

/** A file of a job: a picture or video to look at, a sound to hear, and its download. */
export function ArtifactTile({ artifact }: { artifact: Artifact }) {
  const t = useStrings(strings);
  const format = useFormat();
  return (
    <Box w={SIZE} maw="100%" component="figure" m={0}>
      <Media artifact={artifact} />
      <Group component="figcaption" gap={4} wrap="nowrap" justify="space-between" mt={4}>
        <Box style={{ minWidth: 0 }}>
          <Text size="xs" truncate title={artifact.name}>{artifact.name}</Text>
          <Text size="xs" c="dimmed">{format.bytes(artifact.size)}</Text>
        </Box>
        <ActionIcon
          component="a" href={artifact.url} download={artifact.name} variant="default"
          aria-label={t.downloadFile(artifact.name)} title={t.download}
        >
          <IconDownload size={16} aria-hidden />
        </ActionIcon>
      </Group>
    </Box>
  );
}

function Media({ artifact }: { artifact: Artifact }) {
  const t = useStrings(strings);
  const [kind] = artifact.media_type.split("/");
  const box = {
    display: "grid", placeItems: "center", width: "100%", aspectRatio: 1, overflow: "hidden",
    borderRadius: "var(--mantine-radius-sm)", background: "var(--mantine-color-default-hover)",
  } as const;
  if (kind === "image") {
    return (
      <Anchor href={artifact.url} target="_blank" aria-label={t.openFile(artifact.name)} style={box}>
        <img
          src={`${artifact.url}?w=256`} alt="" loading="lazy"
          style={{ maxWidth: "100%", maxHeight: "100%", objectFit: "contain" }}
        />
      </Anchor>
    );
  }
  if (kind === "video") {
    return (
      <video
        controls preload="none" src={artifact.url} poster={`${artifact.url}?w=256`} aria-label={artifact.name}
        style={{ ...box, objectFit: "contain" }}
      />
    );
  }
  if (kind === "audio") {
    return <Box style={box}><audio controls preload="none" src={artifact.url} aria-label={artifact.name} style={{ width: "95%" }} /></Box>;
  }
  return <Box style={box}><IconFile size={48} stroke={1.2} aria-hidden /></Box>;
}
