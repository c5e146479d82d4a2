import { Button, Group, Paper, Text } from "@mantine/core";
import { IconColumns2, IconDownload, IconTrash } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";
import { useState } from "react";

import { MAX_ARCHIVE_FILES } from "#/components/download";
import { ErrorAlert } from "#/components/error-alert";
import { useFormat, useStrings } from "#/language";

import { downloadFiles } from "./data";
import { DeleteFiles } from "./delete-files";
import { strings } from "./strings";
import type { PictureFile } from "./thumbnail";

interface Props {
  files: PictureFile[];
  mayWrite: boolean;
  onCompare: () => void;
  onNone: () => void;
}

/** What can be done with the selected files. */
export function SelectionBar({ files, mayWrite, onCompare, onNone }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const save = useMutation({ mutationFn: () => downloadFiles(files) });
  const [asks, setAsks] = useState(false);
  const isTooMany = files.length > MAX_ARCHIVE_FILES;
  return (
    <Paper withBorder p="xs" mb="sm" pos="sticky" top={60} shadow="xs" style={{ zIndex: 5 }}>
      <Group gap="xs">
        <Text size="sm" fw={500} aria-live="polite">{t.selected(files.length, format.number(files.length))}</Text>
        <Button variant="subtle" size="xs" onClick={onNone}>{t.selectNone}</Button>
        <Group gap="xs" ml="auto">
          <Button
            variant="default" size="xs" disabled={files.length !== 2} title={t.compareHint} onClick={onCompare}
            leftSection={<IconColumns2 size={15} aria-hidden />}
          >
            {t.compare}
          </Button>
          <Button variant="default" size="xs" loading={save.isPending} disabled={isTooMany} onClick={() => save.mutate()} leftSection={<IconDownload size={15} aria-hidden />}>
            {t.download}
          </Button>
          {mayWrite && (
            <Button variant="default" size="xs" onClick={() => setAsks(true)} leftSection={<IconTrash size={15} aria-hidden />}>
              {t.delete}
            </Button>
          )}
        </Group>
      </Group>
      {isTooMany && <Text size="sm" role="status" mt="xs">{t.tooMany(format.number(MAX_ARCHIVE_FILES))}</Text>}
      {save.error && <ErrorAlert error={save.error} />}
      {asks && <DeleteFiles files={files} onClose={() => setAsks(false)} onDeleted={onNone} />}
    </Paper>
  );
}
