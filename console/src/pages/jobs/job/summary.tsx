import { Anchor, Badge, Group, Tooltip } from "@mantine/core";
import { useInterval } from "@mantine/hooks";
import { useState } from "react";

import { useOperatorLinks } from "#/components/operator-links";
import { useFormat, useStrings } from "#/language";

import { strings, type Strings } from "../strings";
import { isOpen, type JobDetail, runSeconds } from "../types";
import { type Fact, Facts, Panel } from "#/components/panel";

type Canceller = NonNullable<JobDetail["cancelled_by"]>;
type Seconds = NonNullable<NonNullable<JobDetail["eta"]>["starts_in"]>;

export function describeCanceller({ kind, id }: Canceller, t: Strings): string {
  return (t.canceller[kind] ?? kind) + (id ? ` ${id}` : "");
}

/** The job's times, its place in the queue, and what else it was submitted with. */
export function Summary({ job }: { job: JobDetail }) {
  const t = useStrings(strings);
  const format = useFormat();
  const [, setSecond] = useState(0);
  useInterval(() => setSecond((second) => second + (isOpen(job) ? 1 : 0)), 1_000, { autoInvoke: true });
  const time = (value: string | null | undefined) => (value ? format.time(value) : null);
  const estimate = (seconds: Seconds | null | undefined) =>
    seconds ? t.about(format.seconds(seconds.p50), format.seconds(seconds.p90)) : null;
  const canceller = (by: Canceller | null) => by && describeCanceller(by, t);
  const ran = runSeconds(job);
  const temporal = useOperatorLinks()?.temporal;
  const facts: Fact[] = [
    [t.position, job.position],
    [t.queuedFor, job.queued_for === null ? null : format.seconds(job.queued_for)],
    [t.startsIn, estimate(job.eta?.starts_in)],
    [t.endsIn, estimate(job.eta?.ends_in)],
    [t.created, time(job.created_at)],
    [t.started, time(job.started_at)],
    [t.finished, time(job.finished_at)],
    [t.ran, ran === null ? null : format.seconds(ran)],
    [t.attempts, job.attempts],
    [t.priority, job.priority],
    [t.deadline, time(job.submitted?.deadline)],
    [t.webhook, job.submitted?.webhook],
    job.cancelled_by
      ? [t.cancelledBy, canceller(job.cancelled_by)]
      : [t.cancelRequestedBy, canceller(job.cancel_requested_by)],
    [t.workflow, temporal && (
      <Anchor href={`${temporal}/${job.id}`} target="_blank" rel="noreferrer" size="sm">{t.openInTemporal}</Anchor>
    )],
    [t.metadata, Object.keys(job.metadata).length === 0 ? null : (
      <Group gap={4}>
        {Object.entries(job.metadata).map(([key, value]) => (
          <Badge key={key} variant="default" tt="none" maw="100%">{key}: {value}</Badge>
        ))}
      </Group>
    )],
  ];
  return (
    <Panel
      title={t.overview}
      aside={job.cached && <Tooltip label={t.cachedHint}><Badge variant="light" tt="none">{t.cached}</Badge></Tooltip>}
    >
      <Facts facts={facts} />
    </Panel>
  );
}
