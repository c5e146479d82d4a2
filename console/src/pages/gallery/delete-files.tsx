import { Stack, Text } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";

import { Confirm } from "#/components/confirm";
import { useFormat, useStrings } from "#/language";

import { countDeletion, deleteFiles } from "./data";
import { strings } from "./strings";
import type { PictureFile } from "./thumbnail";

interface Props {
  files: PictureFile[];
  onClose: () => void;
  onDeleted: () => void;
}

/** Asks before files are deleted, and says what goes with them. */
export function DeleteFiles({ files, onClose, onDeleted }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const queries = useQueryClient();
  const { uploads, jobs } = countDeletion(files);
  const remove = async () => {
    try {
      await deleteFiles(files);
    } finally {
      // Some may be gone although another failed.
      await queries.invalidateQueries({ queryKey: ["gallery"] });
    }
    onDeleted();
  };
  return (
    <Confirm opened onClose={onClose} title={t.deleteTitle} action={t.delete} onConfirm={remove}>
      <Stack gap="xs">
        {uploads.length > 0 && <Text size="sm">{t.deleteUploads(uploads.length, format.number(uploads.length))}</Text>}
        {jobs.length > 0 && <Text size="sm">{t.deleteJobs(jobs.length, format.number(jobs.length))}</Text>}
        <Text size="sm">{t.deleteNote}</Text>
      </Stack>
    </Confirm>
  );
}
