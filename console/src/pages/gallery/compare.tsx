import { Modal, SimpleGrid, Stack, Text } from "@mantine/core";

import { useFormat, useStrings } from "#/language";

import { Inputs } from "./job-details";
import { Media } from "./media";
import { strings } from "./strings";
import type { PictureFile } from "./thumbnail";

/** Shows two pictures side by side, with what they were made from. */
export function Compare({ files, onClose }: { files: PictureFile[]; onClose: () => void }) {
  const t = useStrings(strings);
  const format = useFormat();
  return (
    <Modal opened onClose={onClose} title={t.compareTitle} size="100%" closeButtonProps={{ "aria-label": t.close }}>
      <SimpleGrid cols={{ base: 1, xs: 2 }}>
        {files.map((file) => (
          <Stack key={file.id} gap="xs">
            <Media file={file} height="65vh" />
            <Text size="sm" fw={500} style={{ overflowWrap: "anywhere" }}>{file.name}</Text>
            {file.created_at && <Text size="xs" c="dimmed">{format.time(file.created_at)}</Text>}
            {file.job !== null && <Inputs job={file.job} file={file.id} />}
          </Stack>
        ))}
      </SimpleGrid>
    </Modal>
  );
}
