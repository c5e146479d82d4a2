/** A small picture of a file, which opens the large one. */

import { AspectRatio, Center, Image, Stack, Text, UnstyledButton } from "@mantine/core";
import { IconFile, IconMusic, IconPlayerPlay, IconPhotoOff } from "@tabler/icons-react";
import { useState } from "react";

import { useStrings } from "#/language";

import { strings } from "./strings";

/** A stored file, in a list or of a job. */
export interface PictureFile {
  id: string;
  url: string;
  name: string;
  media_type: string;
  size: number;
  job: string | null;
  created_at?: string;
  favourite?: boolean;
}

export function isPicture(file: PictureFile): boolean {
  return file.media_type.startsWith("image/");
}

export function isVideo(file: PictureFile): boolean {
  return file.media_type.startsWith("video/");
}

export function Thumbnail({ file, onOpen }: { file: PictureFile; onOpen: () => void }) {
  const t = useStrings(strings);
  const [hasFailed, setHasFailed] = useState(false);
  const hasPicture = (isPicture(file) || isVideo(file)) && !hasFailed;
  return (
    <UnstyledButton onClick={onOpen} aria-label={t.open(file.name)} display="block" w="100%">
      <AspectRatio ratio={1} bg="var(--mantine-color-default-hover)" pos="relative">
        {hasPicture ? (
          <Image
            src={`${file.url}?w=384`} alt="" fit="contain" loading="lazy" decoding="async" radius={0}
            onError={() => setHasFailed(true)}
          />
        ) : (
          <Center>
            <Stack align="center" gap={4}>
              <FileIcon file={file} />
              <Text size="xs" c="dimmed">{file.media_type}</Text>
            </Stack>
          </Center>
        )}
      </AspectRatio>
    </UnstyledButton>
  );
}

function FileIcon({ file }: { file: PictureFile }) {
  const Icon = isPicture(file) ? IconPhotoOff : isVideo(file) ? IconPlayerPlay : file.media_type.startsWith("audio/") ? IconMusic : IconFile;
  return <Icon size={36} stroke={1.3} aria-hidden />;
}
