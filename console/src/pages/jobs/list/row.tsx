import { Anchor, Badge, Box, Checkbox, Group, Progress, Stack, Table, Text } from "@mantine/core";
import { IconApi, IconMessage, IconPhoto, IconRoute } from "@tabler/icons-react";
import { Link } from "wouter";

import { useFormat, useStrings } from "#/language";

import { StatusBadge } from "../status-badge";
import { strings } from "../strings";
import { ERROR_TEXT, type Job, type Kind, runSeconds, shortId } from "../types";

interface Props {
  job: Job;
  /** Undefined where the caller may do nothing with a job. */
  selected: boolean | undefined;
  onSelect: (selected: boolean) => void;
}

export function JobRow({ job, selected, onSelect }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  return (
    <Table.Tr bg={selected ? "var(--mantine-color-default-hover)" : undefined}>
      {selected !== undefined && (
        <Table.Td w={40}>
          <Checkbox
            aria-label={t.select(shortId(job.id))} checked={selected}
            onChange={(event) => onSelect(event.currentTarget.checked)}
          />
        </Table.Td>
      )}
      <Table.Td w={64}><Thumbnail job={job} /></Table.Td>
      <Table.Td>
        <Stack gap={4}>
          <Group gap="xs">
            <Anchor component={Link} href={`/${job.id}`} size="sm" fw={600} style={{ whiteSpace: "nowrap" }}>
              {t[job.kind as Kind]} <Text span ff="monospace" size="xs">{shortId(job.id)}</Text>
            </Anchor>
            <StatusBadge status={job.status} />
          </Group>
          <Group gap={4}>
            {Object.entries(job.metadata).slice(0, 4).map(([key, value]) => (
              <Badge key={key} size="sm" variant="default" tt="none" maw="min(220px, 100%)">{key}: {value}</Badge>
            ))}
            {job.steps > 1 && (
              <Text size="xs" c="dimmed">{job.kind === "render" ? t.renders(job.steps) : t.steps(job.steps)}</Text>
            )}
          </Group>
          {job.error && <Text size="xs" c={ERROR_TEXT} lineClamp={1} style={{ overflowWrap: "anywhere" }}>{job.error.message}</Text>}
          <Text size="xs" c="dimmed" hiddenFrom="sm">{format.ago(job.created_at)} · <Duration job={job} /></Text>
          {job.status === "running" && (
            <Progress
              value={(100 * job.progress.value) / Math.max(1, job.progress.max)} size="sm" aria-label={t.progress}
              maw={260}
            />
          )}
        </Stack>
      </Table.Td>
      <Table.Td visibleFrom="sm" w={215}><Text size="sm" style={{ whiteSpace: "nowrap" }} title={format.ago(job.created_at)}>{format.time(job.created_at)}</Text></Table.Td>
      <Table.Td visibleFrom="sm" w={130}><Text size="sm"><Duration job={job} /></Text></Table.Td>
      <Table.Td visibleFrom="sm" w={100} ta="right">
        <Text size="sm">{job.cost_usd > 0 ? format.usd(job.cost_usd) : "–"}</Text>
      </Table.Td>
    </Table.Tr>
  );
}

/** How long a job ran; of a waiting one its place. */
function Duration({ job }: { job: Job }) {
  const t = useStrings(strings);
  const format = useFormat();
  if (job.status === "queued") {
    const waiting = job.queued_for === null ? t.queued : format.seconds(job.queued_for);
    return job.position === null ? waiting : `${t.place(job.position)} · ${waiting}`;
  }
  const seconds = runSeconds(job);
  return seconds === null ? "–" : format.seconds(seconds);
}

const ICONS = { chat: IconMessage, render: IconPhoto, http: IconApi, pipeline: IconRoute };

function Thumbnail({ job }: { job: Job }) {
  const Icon = ICONS[job.kind as Kind];
  const picture = job.artifacts.find((file) => /^(image|video)\//.test(file.media_type));
  return (
    <Box
      w={48} h={48} bg="var(--mantine-color-default-hover)"
      style={{ display: "grid", placeItems: "center", borderRadius: "var(--mantine-radius-sm)", overflow: "hidden" }}
    >
      {picture
        ? <img
            src={`${picture.url}?w=96`} alt="" width={48} height={48} loading="lazy" style={{ objectFit: "cover" }}
          />
        : <Icon size={22} stroke={1.4} color="var(--mantine-color-dimmed)" aria-hidden />}
    </Box>
  );
}
