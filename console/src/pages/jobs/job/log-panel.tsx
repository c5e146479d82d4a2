/** Shows the events of a job as the lines of a log. */

import { Box, Button, Skeleton, Text } from "@mantine/core";
import { useClipboard } from "@mantine/hooks";
import { IconCheck, IconCopy } from "@tabler/icons-react";
import { memo } from "react";

import { Panel } from "#/components/panel";
import { type Format, useFormat, useStrings } from "#/language";

import { strings, type Strings } from "../strings";
import { ERROR_TEXT, type JobDetail, type StatusEvent } from "../types";
import type { JobEvents } from "./follow";
import type { LogLine } from "./log";
import { describeCanceller } from "./summary";

const MAX_DETAILS = 2_000;

/** What the texts of all lines of a job depend on. */
interface Texts {
  t: Strings;
  format: Format;
  isBatch: boolean;
  hasSteps: boolean;
  hasAttempts: boolean;
}

export function LogPanel({ job, events }: { job: JobDetail; events: JobEvents }) {
  const t = useStrings(strings);
  const format = useFormat();
  const clipboard = useClipboard();
  const { lines, isCut } = events.log;
  const texts = { t, format, isBatch: job.children !== null, hasSteps: job.steps > 1, hasAttempts: job.attempts > 1 };
  return (
    <Panel
      title={t.log}
      aside={lines.length > 0 && (
        <Button
          variant="default" size="xs"
          leftSection={clipboard.copied ? <IconCheck size={15} aria-hidden /> : <IconCopy size={15} aria-hidden />}
          onClick={() => clipboard.copy(lines.map((line) => `${line.time} ${describe(line, texts)}`).join("\n"))}
        >
          {clipboard.copied ? t.copied : t.copyLog}
        </Button>
      )}
    >
      {lines.length === 0 && (events.isComplete ? <Text size="sm" c="dimmed">{t.eventsGone}</Text> : <Skeleton h={80} />)}
      {isCut && lines.length > 0 && <Text size="xs" c="dimmed" mb={4}>{t.logCut}</Text>}
      {lines.length > 0 && (
        // Reversed, the box shows the newest line, and stays there until the reader scrolls.
        <Box className="job-log" tabIndex={0} role="region" aria-label={t.logLines}>
          <ol>
            {lines.map((line) => (
              <Line
                key={line.number} time={line.time} shown={format.time(line.time)} text={describe(line, texts)}
                isError={line.event.type === "status" && line.event.data.status === "failed"}
              />
            ))}
          </ol>
        </Box>
      )}
    </Panel>
  );
}

const Line = memo(({ time, shown, text, isError }: { time: string; shown: string; text: string; isError: boolean }) => (
  <li>
    <time dateTime={time}>{shown}</time>
    <span style={isError ? { color: ERROR_TEXT } : undefined}>{text}</span>
  </li>
));

function describe({ attempt, event }: LogLine, texts: Texts): string {
  const { t, format, isBatch, hasSteps, hasAttempts } = texts;
  const parts: (string | null)[] = [hasAttempts && attempt !== null ? t.attempt(attempt) : null];
  if (event.type === "status") {
    parts.push(describeStatus(event.data, t));
  } else if (event.type === "progress") {
    const { step, node, value, max } = event.data;
    if (isBatch) parts.push(t.child(step + 1));
    else if (hasSteps) parts.push(t.step(step + 1));
    parts.push(node ? `${t.node} ${node}` : t.progress, t.progressOf(format.number(value), format.number(max)));
  } else {
    const { step, artifacts } = event.data;
    parts.push(isBatch ? t.childDone(step + 1) : t.stepDone(step + 1));
    parts.push(artifacts.length > 0 ? t.files(artifacts.length) : null);
  }
  return parts.filter((part) => part !== null).join(" · ");
}

function describeStatus({ status, attempt, error, cancelled_by }: StatusEvent, t: Strings): string {
  if (status === "queued") return attempt === 1 ? t.accepted : t.retryBegan;
  if (status === "cancelled" && cancelled_by) return `${t.cancelledBy}: ${describeCanceller(cancelled_by, t)}`;
  if (status !== "failed" || !error) return t[status];
  const details = Object.entries(error.details ?? {})
    .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(", ");
  return [`${t.failed}: ${error.message}`, error.code, details.slice(0, MAX_DETAILS)].filter(Boolean).join(" · ");
}
