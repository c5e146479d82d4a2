import { Anchor, Progress, Text } from "@mantine/core";
import { IconApi, IconMessage, IconPhoto, IconRoute } from "@tabler/icons-react";
import { Link } from "wouter";

import { Check, CELL, ROW, Tag } from "#/components/plain";
import { type Format, useFormat, useStrings } from "#/language";

import { StatusBadge } from "../status-badge";
import { strings, type Strings } from "../strings";
import { ERROR_TEXT, type Job, type Kind, runSeconds, shortId } from "../types";

const LINK = `mantine-focus-auto ${Anchor.classes.root} text-sm no-wrap job-link`;
const WIDE_CELL = `${CELL} text-sm mantine-visible-from-sm`;
const SELECTED = { background: "var(--mantine-color-default-hover)" };

interface Props {
  job: Job;
  /** Undefined where the caller may do nothing with a job. */
  selected: boolean | undefined;
  onSelect: (selected: boolean) => void;
}

export function JobRow({ job, selected, onSelect }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const duration = describeDuration(job, t, format);
  const ago = format.ago(job.created_at);
  const metadata = Object.entries(job.metadata).slice(0, 4);
  return (
    <tr {...ROW} style={selected ? SELECTED : undefined}>
      {selected !== undefined && (
        <td className={CELL}>
          <Check
            aria-label={t.select(shortId(job.id))} checked={selected}
            onChange={(event) => onSelect(event.currentTarget.checked)}
          />
        </td>
      )}
      <td className={CELL}><Thumbnail job={job} /></td>
      <td className={CELL}>
        <div className="lines">
          <div className="line">
            <Link href={`/${job.id}`} className={LINK} data-underline="hover">
              {t[job.kind as Kind]} <code className="text-xs job-id">{shortId(job.id)}</code>
            </Link>
            <StatusBadge status={job.status} />
          </div>
          {(metadata.length > 0 || job.steps > 1) && (
            <div className="line" style={{ gap: 4 }}>
              {metadata.map(([key, value]) => <Tag key={key}>{key}: {value}</Tag>)}
              {job.steps > 1 && (
                <span className="text-xs dimmed">{job.kind === "render" ? t.renders(job.steps) : t.steps(job.steps)}</span>
              )}
            </div>
          )}
          {job.error && <Text size="xs" c={ERROR_TEXT} lineClamp={1} style={{ overflowWrap: "anywhere" }}>{job.error.message}</Text>}
          <p className="text-xs dimmed mantine-hidden-from-sm">{ago} · {duration}</p>
          {job.status === "running" && (
            <Progress
              value={(100 * job.progress.value) / Math.max(1, job.progress.max)} size="sm" aria-label={t.progress}
              maw={260}
            />
          )}
        </div>
      </td>
      <td className={`${WIDE_CELL} no-wrap`} title={ago}>{format.time(job.created_at)}</td>
      <td className={WIDE_CELL}>{duration}</td>
      <td className={`${WIDE_CELL} end`}>{job.cost_usd > 0 ? format.usd(job.cost_usd) : "–"}</td>
    </tr>
  );
}

/** How long a job ran; of a waiting one its place. */
function describeDuration(job: Job, t: Strings, format: Format): string {
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
    <div className="job-thumbnail">
      {picture
        ? <img src={`${picture.url}?w=96`} alt="" width={48} height={48} loading="lazy" style={{ objectFit: "cover" }} />
        : <Icon size={22} stroke={1.4} color="var(--mantine-color-dimmed)" aria-hidden />}
    </div>
  );
}
