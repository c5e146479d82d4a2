/** Shows one job: what it is, how it goes, what it made. */

import { ActionIcon, Alert, Anchor, CopyButton, Grid, Group, Skeleton, Stack, Text, Title, Tooltip } from "@mantine/core";
import { IconArrowLeft, IconCheck, IconCopy } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "wouter";

import { body, gateway } from "#/api/client";
import { isNotFound } from "#/api/errors";
import { useQueuePlace } from "#/api/newest-jobs";
import { ErrorAlert } from "#/components/error-alert";
import { NotFound } from "#/components/not-found";
import { Reconnecting } from "#/components/reconnecting";
import { useStrings } from "#/language";

import { StatusBadge } from "../status-badge";
import { strings } from "../strings";
import { isOpen, type JobDetail, type Kind, LIST, shortId } from "../types";
import { JobActs } from "./acts";
import { Costs } from "./costs";
import { useJobEvents } from "./follow";
import { GraphPanel } from "./graph";
import { Live } from "./live";
import { LogPanel } from "./log-panel";
import { RequestPanel } from "./request";
import { Results } from "./results";
import { Summary } from "./summary";
import { JobTimeline } from "./timeline";

export function JobPage({ id }: { id: string }) {
  const t = useStrings(strings);
  const job = useQuery({
    queryKey: ["job", id],
    queryFn: ({ signal }) => body(gateway.GET("/jobs/{job_id}", { params: { path: { job_id: id } }, signal })),
  });
  useQueuePlace(job.data);
  return (
    <>
      <Anchor component={Link} href={LIST} size="sm" mb="xs" display="inline-block">
        <Group component="span" gap={4}><IconArrowLeft size={14} aria-hidden />{t.back}</Group>
      </Anchor>
      {job.isPending && <Skeleton h={400} />}
      {job.isError && (
        isNotFound(job.error)
          ? <NotFound title={t.notFound}>{t.notFoundHint}</NotFound>
          : <ErrorAlert error={job.error} onRetry={() => void job.refetch()} />
      )}
      {job.isSuccess && <JobView job={job.data} />}
    </>
  );
}

function JobView({ job }: { job: JobDetail }) {
  const t = useStrings(strings);
  const events = useJobEvents(job);
  return (
    <Stack gap="md">
      <Group justify="space-between" gap="sm">
        <Group gap="xs">
          <Title order={2} size="h3">{t[job.kind as Kind]} <Text span inherit ff="monospace">{shortId(job.id)}</Text></Title>
          <CopyId id={job.id} />
          <StatusBadge status={job.status} />
        </Group>
        <JobActs job={job} />
      </Group>
      <Reconnecting live={events.live} />
      {job.error && (
        <Alert color="red" title={t.errorTitle}>
          <Text size="sm">{job.error.message}</Text>
          <Text size="xs" ff="monospace" mt={4}>{job.error.code}</Text>
        </Alert>
      )}
      <Grid gap="md">
        <Grid.Col span={{ base: 12, lg: 8 }}>
          <Stack gap="md">
            {isOpen(job) && <Live job={job} events={events} />}
            <Results job={job} />
            <GraphPanel job={job} activeNode={isOpen(job) ? (events.progress?.node ?? null) : null} />
            <RequestPanel job={job} />
            <LogPanel job={job} events={events} />
          </Stack>
        </Grid.Col>
        <Grid.Col span={{ base: 12, lg: 4 }}>
          <Stack gap="md">
            <Summary job={job} />
            <Costs job={job} />
            <JobTimeline job={job} events={events} />
          </Stack>
        </Grid.Col>
      </Grid>
    </Stack>
  );
}

function CopyId({ id }: { id: string }) {
  const t = useStrings(strings);
  return (
    <CopyButton value={id}>
      {({ copied, copy }) => (
        <Tooltip label={copied ? t.copied : t.copyId}>
          <ActionIcon variant="subtle" color="gray" aria-label={copied ? t.copied : t.copyId} onClick={copy}>
            {copied ? <IconCheck size={16} aria-hidden /> : <IconCopy size={16} aria-hidden />}
          </ActionIcon>
        </Tooltip>
      )}
    </CopyButton>
  );
}
