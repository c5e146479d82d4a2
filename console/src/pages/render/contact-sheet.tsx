/** Shows the renders of a job side by side, each as soon as it is ready. */

import { ActionIcon, Alert, AspectRatio, Badge, Button, Card, Group, Image, Paper, Progress, SimpleGrid, Skeleton, Stack, Text } from "@mantine/core";
import { IconDownload } from "@tabler/icons-react";
import { useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Link } from "wouter";

import { body, gateway } from "#/api/client";
import { isNotFound } from "#/api/errors";
import { hasScope, useCaller } from "#/api/session";
import { Confirm } from "#/components/confirm";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { Reconnecting } from "#/components/reconnecting";
import { useFormat, useStrings } from "#/language";
import { type PictureFile, Thumbnail } from "#/pages/gallery/thumbnail";

import { showScalar } from "./exact-json";
import { type LiveJob, useLiveJob } from "./live-job";
import { strings } from "./strings";

type Job = NonNullable<LiveJob["job"]>;
const COLORS = { queued: "gray", running: "blue", succeeded: "green", failed: "red", cancelled: "gray" } as const;

interface Cell {
  key: string;
  status: Job["status"];
  /** What sets this render apart from the others. */
  label: string;
  file: PictureFile | null;
  error: string | null;
  cached: boolean;
  preview: string | undefined;
}

export function ContactSheet({ id, onOpen }: { id: string; onOpen: (file: PictureFile) => void }) {
  const t = useStrings(strings);
  const { job, error, previews, live } = useLiveJob(id);
  if (isNotFound(error)) return <Paper withBorder><EmptyState title={t.noSuchJob}>{t.noSuchJobHint}</EmptyState></Paper>;
  if (error) return <ErrorAlert error={error} />;
  if (!job) return <Skeleton h={220} />;
  return (
    <Stack gap="sm">
      <SheetHeader job={job} />
      <Reconnecting live={live} />
      {job.error && job.children === null && (
        <Alert color="red" role="alert"><Text size="sm">{job.error.message}</Text></Alert>
      )}
      <SimpleGrid cols={{ base: 2, md: 3, xl: 4 }} spacing="sm" role="list" aria-label={t.results}>
        {listCells(job, previews).map((cell) => <SheetCell key={cell.key} cell={cell} onOpen={onOpen} />)}
      </SimpleGrid>
    </Stack>
  );
}

function listCells(job: Job, previews: Record<number, string>): Cell[] {
  if (job.children !== null) {
    return job.children.flatMap((child) => {
      const label = Object.entries(child.inputs).map(([name, value]) => `${name.replace(/^inputs\./, "")} ${showScalar(value)}`).join(" · ");
      const common = { status: child.status, label, error: child.error?.message ?? null, cached: child.cached, preview: previews[child.index] };
      const files = child.artifacts.length > 0 ? child.artifacts : [null];
      return files.map((file, place) => ({ ...common, key: `${child.index}.${place}`, file: file && { ...file, job: job.id } }));
    });
  }
  const files = job.artifacts.length > 0 ? job.artifacts : [null];
  return files.map((file, place) => ({
    key: String(place), status: job.status, label: file?.name ?? "", error: null, cached: job.cached,
    file: file && { ...file, job: job.id }, preview: previews[job.progress.step],
  }));
}

function SheetHeader({ job }: { job: Job }) {
  const t = useStrings(strings);
  const format = useFormat();
  const { data: caller } = useCaller();
  const queries = useQueryClient();
  const [asks, setAsks] = useState(false);
  const isOpen = job.status === "queued" || job.status === "running";
  const { value, max } = job.progress;
  const starts = job.eta?.starts_in?.p50;
  const ends = job.eta?.ends_in?.p50;
  const facts = [
    job.children !== null ? t.progress(format.number(job.children.filter((child) => child.status === "succeeded").length), format.number(job.steps)) : null,
    isOpen && job.status === "queued" && starts !== undefined ? t.startsIn(format.seconds(starts)) : null,
    isOpen && ends !== undefined ? t.endsIn(format.seconds(ends)) : null,
    job.cost_usd > 0 ? format.usd(job.cost_usd) : null,
  ].filter((fact) => fact !== null);
  const cancel = async () => {
    await body(gateway.POST("/jobs/{job_id}/cancel", { params: { path: { job_id: job.id } } }));
    await queries.invalidateQueries({ queryKey: ["job", job.id] });
  };
  return (
    <Stack gap={6}>
      <Group justify="space-between">
        <Group gap="xs" aria-live="polite">
          <Badge color={COLORS[job.status]} variant="light" autoContrast>{t.statuses[job.status]}</Badge>
          <Text size="sm" c="dimmed">{facts.join(" · ")}</Text>
        </Group>
        <Group gap="xs">
          {isOpen && caller && hasScope(caller, "jobs:write") && (
            <Button size="compact-sm" variant="default" onClick={() => setAsks(true)}>{t.cancelJob}</Button>
          )}
          <Button size="compact-sm" variant="default" component={Link} href={`/jobs/${job.id}`}>{t.openJob}</Button>
        </Group>
      </Group>
      {isOpen && <Progress value={max > 0 ? (100 * value) / max : 0} animated aria-label={t.results} />}
      <Confirm opened={asks} onClose={() => setAsks(false)} title={t.cancelJob} action={t.cancelJob} onConfirm={cancel}>
        {t.cancelText}
      </Confirm>
    </Stack>
  );
}

function SheetCell({ cell, onOpen }: { cell: Cell; onOpen: (file: PictureFile) => void }) {
  const t = useStrings(strings);
  const { file } = cell;
  return (
    <Card withBorder padding="xs" role="listitem">
      <Card.Section>
        {file ? (
          <Thumbnail file={file} onOpen={() => onOpen(file)} />
        ) : (
          <AspectRatio ratio={1} bg="var(--mantine-color-default-hover)">
            {cell.preview && cell.status === "running"
              ? <Image src={cell.preview} alt="" fit="contain" />
              : <Text size="sm" c="dimmed" p="xs" ta="center">{cell.error ?? t.statuses[cell.status]}</Text>}
          </AspectRatio>
        )}
      </Card.Section>
      <Group justify="space-between" wrap="nowrap" gap={4} mt={6}>
        <Text size="xs" truncate title={cell.label}>{cell.cached ? `${cell.label} · ${t.cached}` : cell.label}</Text>
        {file && (
          <ActionIcon
            component="a" href={file.url} download={file.name} variant="subtle" size="sm" flex="none"
            aria-label={t.download(file.name)}
          >
            <IconDownload size={15} />
          </ActionIcon>
        )}
      </Group>
    </Card>
  );
}
