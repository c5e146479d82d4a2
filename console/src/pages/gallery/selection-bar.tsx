import { Button, Group, Paper, Text } from "@mantine/core";
import { IconColumns2, IconDownload, IconTrash } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";
import { useState } from "react";

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
          <Button variant="default" size="xs" loading={save.isPending} onClick={() => save.mutate()} leftSection={<IconDownload size={15} aria-hidden />}>
            {t.download}
          </Button>
          {mayWrite && (
            <Button variant="default" size="xs" onClick={() => setAsks(true)} leftSection={<IconTrash size={15} aria-hidden />}>
              {t.delete}
            </Button>
          )}
        </Group>
      </Group>
      {save.error && <ErrorAlert error={save.error} />}
      {asks && <DeleteFiles files={files} onClose={() => setAsks(false)} onDeleted={onNone} />}
    </Paper>
  );
}
