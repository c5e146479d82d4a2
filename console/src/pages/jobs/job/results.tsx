/** Shows what a job has made: of each finished step, or of each render of a batch. */

import { Box, Button, Group, Paper, Stack, Text, Title } from "@mantine/core";
import { IconDownload } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";
import { useState } from "react";

import { downloadArchive } from "#/components/download";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";

import { StatusBadge } from "../status-badge";
import { strings } from "../strings";
import { type Artifact, type Child, ERROR_TEXT, isOpen, type JobDetail, type Output } from "../types";
import { ArtifactTile } from "./artifact-tile";
import { JsonBlock } from "./json-block";
import { Panel } from "#/components/panel";

const CHILDREN_AT_ONCE = 24;

export function Results({ job }: { job: JobDetail }) {
  const t = useStrings(strings);
  if (job.children !== null) return <Children job={job} items={job.children} />;
  if (job.outputs.length === 0) {
    // An open job shows its progress instead, and a failed one its error.
    return isOpen(job) || job.error ? null : <Panel title={t.results}><Text size="sm" c="dimmed">{t.noResults}</Text></Panel>;
  }
  return (
    <Panel title={t.results} aside={<DownloadAll job={job} files={job.outputs.flatMap((output) => output.artifacts)} />}>
      <Stack gap="lg">
        {job.outputs.map((output) => <OutputView key={output.step} output={output} isOnly={job.steps === 1} />)}
      </Stack>
    </Panel>
  );
}

function OutputView({ output, isOnly }: { output: Output; isOnly: boolean }) {
  const t = useStrings(strings);
  return (
    <Stack gap="xs">
      {!isOnly && <Title order={4} size="h6">{t.step(output.step + 1)}</Title>}
      {output.artifacts.length > 0 && (
        <Group align="flex-start">
          {output.artifacts.map((artifact) => <ArtifactTile key={artifact.id} artifact={artifact} />)}
        </Group>
      )}
      {output.text !== null && output.text !== "" && (
        <Text size="sm" style={{ whiteSpace: "pre-wrap", overflowWrap: "anywhere" }}>{output.text}</Text>
      )}
      {output.body !== null && output.body !== undefined && (
        <Box component="details" fz="sm">
          <summary>{t.response}</summary>
          <JsonBlock value={output.body} label={t.response} />
        </Box>
      )}
    </Stack>
  );
}

function Children({ job, items }: { job: JobDetail; items: readonly Child[] }) {
  const t = useStrings(strings);
  const [count, setCount] = useState(CHILDREN_AT_ONCE);
  return (
    <Panel title={t.children} aside={<DownloadAll job={job} files={items.flatMap((child) => child.artifacts)} />}>
      <Box style={{ display: "grid", gap: 12, gridTemplateColumns: "repeat(auto-fill, minmax(136px, 1fr))" }}>
        {items.slice(0, count).map((child) => <ChildView key={child.index} child={child} />)}
      </Box>
      {items.length > count && (
        <Button mt="md" variant="default" onClick={() => setCount(count + CHILDREN_AT_ONCE)}>{t.more}</Button>
      )}
    </Panel>
  );
}

/** Saves several files as one archive; a single file has its own button. */
function DownloadAll({ job, files }: { job: JobDetail; files: readonly Artifact[] }) {
  const t = useStrings(strings);
  const save = useMutation({ mutationFn: () => downloadArchive({ job: job.id }) });
  if (files.length < 2) return null;
  return (
    <>
      <Button
        variant="default" size="xs" loading={save.isPending} onClick={() => save.mutate()}
        leftSection={<IconDownload size={15} aria-hidden />}
      >
        {t.downloadAll}
      </Button>
      {save.error && <Box w="100%"><ErrorAlert error={save.error} /></Box>}
    </>
  );
}

function ChildView({ child }: { child: Child }) {
  const t = useStrings(strings);
  return (
    <Paper withBorder p="xs" maw={220} component="article" aria-label={t.child(child.index + 1)}>
      <Group justify="space-between" mb={6} wrap="nowrap">
        <Text size="sm" fw={600}>{child.index + 1}</Text>
        <StatusBadge status={child.status} />
      </Group>
      {Object.entries(child.inputs).map(([name, value]) => (
        <Text key={name} size="xs" truncate title={String(value)}>
          <Text span c="dimmed" size="xs">{name}</Text> {typeof value === "object" ? JSON.stringify(value) : String(value)}
        </Text>
      ))}
      {child.error && <Text size="xs" c={ERROR_TEXT} lineClamp={3}>{child.error.message}</Text>}
      <Stack gap="xs" mt={6}>
        {child.artifacts.map((artifact) => <ArtifactTile key={artifact.id} artifact={artifact} />)}
      </Stack>
    </Paper>
  );
}
