/** Shows how an open job goes on: progress, the node at work, and the newest preview. */

import { Box, Group, Image, Progress, Text } from "@mantine/core";

import { useFormat, useStrings } from "#/language";

import { strings } from "../strings";
import { isOpen, type JobDetail } from "../types";
import type { JobEvents } from "./follow";
import { Panel } from "#/components/panel";

export function Live({ job, events }: { job: JobDetail; events: JobEvents }) {
  const t = useStrings(strings);
  const format = useFormat();
  const { value, max } = events.progress ?? job.progress;
  const preview = isOpen(job) ? events.preview : null;
  return (
    <Panel title={t.progress}>
      <Progress
        value={(100 * value) / Math.max(1, max)} size="lg" animated={job.status === "running"} aria-label={t.progress}
      />
      <Group justify="space-between" mt={6}>
        <Text size="sm">{t.progressOf(format.number(value), format.number(max))}</Text>
        {events.progress?.node && <Text size="sm" c="dimmed">{t.node} {events.progress.node}</Text>}
      </Group>
      {preview && (
        <Box mt="sm">
          <Text size="xs" c="dimmed" mb={4}>{t.preview}</Text>
          <Image src={preview.url} alt={t.previewAlt} mah={360} w="auto" fit="contain" radius="sm" />
        </Box>
      )}
    </Panel>
  );
}
