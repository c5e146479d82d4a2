/** A picture in full size with what it was made from, and what can be done with it. */

import { ActionIcon, Button, Grid, Group, Modal, Stack, Text } from "@mantine/core";
import { useHotkeys } from "@mantine/hooks";
import { IconChevronLeft, IconChevronRight, IconDownload, IconShare, IconTrash } from "@tabler/icons-react";
import { useState } from "react";

import { hasScope, useCaller } from "#/api/session";
import { useFormat, useStrings } from "#/language";

import { DeleteFiles } from "./delete-files";
import { FavouriteButton } from "./favourite-button";
import { JobDetails } from "./job-details";
import { Media } from "./media";
import { Share } from "./share";
import { strings } from "./strings";
import type { PictureFile } from "./thumbnail";

interface Props {
  /** The files among which one can go on. */
  files: PictureFile[];
  file: PictureFile;
  onShow: (file: PictureFile) => void;
  onClose: () => void;
}

export function Viewer({ files, file, onShow, onClose }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const { data: caller } = useCaller();
  const [asked, setAsked] = useState<"share" | "delete" | null>(null);
  // The dialog that was asked for last gives the focus back to its button.
  const [last, setLast] = useState(asked);
  const ask = (dialog: "share" | "delete") => {
    setAsked(dialog);
    setLast(dialog);
  };
  const mayWrite = caller != null && hasScope(caller, "jobs:write");
  const place = files.findIndex(({ id }) => id === file.id);
  const [previous, next] = [files[place - 1], files[place + 1]];
  useHotkeys([
    ["ArrowLeft", () => asked === null && previous && onShow(previous)],
    ["ArrowRight", () => asked === null && next && onShow(next)],
  ]);
  const facts = [
    file.media_type, format.bytes(file.size), file.created_at ? format.time(file.created_at) : null,
  ].filter((fact) => fact !== null);
  return (
    <>
      <Modal
        opened={asked === null} onClose={onClose} title={file.name} size="100%"
        closeButtonProps={{ "aria-label": t.close }}
        styles={{ title: { overflowWrap: "anywhere" } }}
      >
        <Grid gap="md">
          <Grid.Col span={{ base: 12, md: 8 }}>
            <Media file={file} height="78vh" />
          </Grid.Col>
          <Grid.Col span={{ base: 12, md: 4 }}>
            <Stack gap="sm">
              <Group gap="xs">
                {files.length > 1 && (
                  <>
                    <ActionIcon variant="default" aria-label={t.previous} disabled={!previous} onClick={() => previous && onShow(previous)}>
                      <IconChevronLeft size={18} />
                    </ActionIcon>
                    <ActionIcon variant="default" aria-label={t.next} disabled={!next} onClick={() => next && onShow(next)}>
                      <IconChevronRight size={18} />
                    </ActionIcon>
                  </>
                )}
                {mayWrite && file.favourite !== undefined && (
                  <FavouriteButton file={file} onChange={(favourite) => onShow({ ...file, favourite })} />
                )}
              </Group>
              <Group gap="xs">
                <Button component="a" href={file.url} download={file.name} size="xs" leftSection={<IconDownload size={15} aria-hidden />}>
                  {t.download}
                </Button>
                {mayWrite && (
                  <>
                    <Button
                      variant="default" size="xs" leftSection={<IconShare size={15} aria-hidden />}
                      data-autofocus={last === "share" || undefined} onClick={() => ask("share")}
                    >
                      {t.share}
                    </Button>
                    <Button
                      variant="default" size="xs" leftSection={<IconTrash size={15} aria-hidden />}
                      data-autofocus={last === "delete" || undefined} onClick={() => ask("delete")}
                    >
                      {t.delete}
                    </Button>
                  </>
                )}
              </Group>
              <Text size="sm" c="dimmed">{facts.join(" · ")}</Text>
              {file.job === null ? <Text size="sm">{t.upload}</Text> : <JobDetails job={file.job} file={file.id} />}
            </Stack>
          </Grid.Col>
        </Grid>
      </Modal>
      {asked === "share" && <Share file={file} onClose={() => setAsked(null)} />}
      {asked === "delete" && <DeleteFiles files={[file]} onClose={() => setAsked(null)} onDeleted={onClose} />}
    </>
  );
}
