import { Skeleton, Text, Timeline } from "@mantine/core";
import { IconCheck, IconClock, IconPlayerPlay, IconStack2, IconX } from "@tabler/icons-react";
import type { ReactElement } from "react";

import { Panel } from "#/components/panel";
import { useFormat, useStrings } from "#/language";

import { strings } from "../strings";
import { ERROR_TEXT, isOpen, type JobDetail, STATUS_COLOURS } from "../types";
import type { Attempt, JobEvents } from "./follow";

// Of a batch's many renders, those that finished last.
const MAX_STEPS = 8;

/** The job's attempts with their steps, as the events of the job tell them. */
export function JobTimeline({ job, events }: { job: JobDetail; events: JobEvents }) {
  const t = useStrings(strings);
  return (
    <Panel title={t.timeline}>
      {events.attempts.length === 0 && (
        events.isComplete ? <Text size="sm" c="dimmed">{t.eventsGone}</Text> : <Skeleton h={80} />
      )}
      {events.attempts.map((attempt) => (
        <div key={attempt.number}>
          {job.attempts > 1 && <Text size="sm" fw={600} mb={6} mt="xs">{t.attempt(attempt.number)}</Text>}
          <AttemptView job={job} attempt={attempt} />
        </div>
      ))}
    </Panel>
  );
}

function AttemptView({ job, attempt }: { job: JobDetail; attempt: Attempt }) {
  const t = useStrings(strings);
  const format = useFormat();
  const { last, steps } = attempt;
  const end = last !== null && !isOpen(last) ? last : null;
  const shown = steps.slice(-MAX_STEPS);
  const entries: ReactElement[] = [
    <Entry
      key="queued" icon={IconClock} title={attempt.number === 1 ? t.accepted : t.retryBegan}
      note={attempt.number === 1 ? format.time(job.created_at) : null}
    />,
  ];
  if (attempt.startedAt !== null) {
    entries.push(<Entry key="running" icon={IconPlayerPlay} title={t.running} note={format.time(attempt.startedAt)} />);
  }
  if (steps.length > shown.length) {
    entries.push(<Entry key="earlier" icon={IconStack2} title={t.earlierSteps(steps.length - shown.length)} note={null} />);
  }
  for (const { step, artifacts } of shown) {
    const title = job.children === null ? t.stepDone(step + 1) : t.childDone(step + 1);
    entries.push(
      <Entry
        key={`step-${step}`} icon={IconCheck} title={title}
        note={artifacts.length > 0 ? t.files(artifacts.length) : null}
      />,
    );
  }
  if (end !== null) {
    entries.push(
      <Entry
        key="end" icon={end.status === "succeeded" ? IconCheck : IconX} title={t[end.status]}
        note={end.finished_at === null ? null : format.time(end.finished_at)} error={end.error?.message}
        colour={STATUS_COLOURS[end.status]}
      />,
    );
  }
  return <Timeline active={entries.length - 1} bulletSize={22} lineWidth={2}>{entries}</Timeline>;
}

interface EntryProps {
  icon: typeof IconCheck;
  title: string;
  note: string | null;
  error?: string;
  colour?: string;
}

function Entry({ icon: Icon, title, note, error, colour, ...timeline }: EntryProps) {
  return (
    <Timeline.Item {...timeline} bullet={<Icon size={12} aria-hidden />} color={colour} title={<Text size="sm">{title}</Text>}>
      {note && <Text size="xs" c="dimmed">{note}</Text>}
      {error && <Text size="xs" c={ERROR_TEXT} lineClamp={3}>{error}</Text>}
    </Timeline.Item>
  );
}
