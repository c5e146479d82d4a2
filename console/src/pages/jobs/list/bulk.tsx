/** Cancels or deletes many jobs: those that are selected, or all that match the filters. */

import { Button, Group, Menu, Paper, Stack, Text } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { IconDots } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { body, gateway } from "#/api/client";
import { ApiError } from "#/api/errors";
import { Confirm } from "#/components/confirm";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";

import { strings } from "../strings";
import { isOpen, type Job, type JobFilter } from "../types";

type Act = "cancel" | "delete";
interface Result {
  matched: number;
  done: number;
  skipped: number;
}

/** Acts for the selected jobs. Their statuses are known, so what an act will do is counted here. */
export function SelectionActs({ jobs, onDone }: { jobs: Job[]; onDone: () => void }) {
  const t = useStrings(strings);
  const [act, setAct] = useState<Act | null>(null);
  const finish = useFinish();
  const open = jobs.filter(isOpen);
  const ended = jobs.filter((job) => !isOpen(job));
  const [changed, skipped] = act === "cancel" ? [open, ended] : [ended, open];
  return (
    <Paper withBorder p="xs" mb="xs">
      <Group gap="xs">
        <Text size="sm" fw={600} aria-live="polite">{t.selected(jobs.length)}</Text>
        <Button size="xs" variant="default" disabled={open.length === 0} onClick={() => setAct("cancel")}>
          {t.cancelSelected}
        </Button>
        <Button
          size="xs" variant="default" disabled={ended.length === 0} onClick={() => setAct("delete")}
        >
          {t.deleteSelected}
        </Button>
      </Group>
      <Confirm
        opened={act !== null} onClose={() => setAct(null)} title={act === "cancel" ? t.cancelTitle : t.deleteTitle}
        action={act === "cancel" ? t.cancelJobs : t.deleteJobs}
        onConfirm={async () => {
          const done = await changeEach(act!, changed);
          finish(act!, { matched: jobs.length, done, skipped: jobs.length - done });
          onDone();
        }}
      >
        <Text size="sm">{act === "cancel" ? t.willCancel(changed.length) : t.willDelete(changed.length)}</Text>
        {skipped.length > 0 && (
          <Text size="sm" mt="xs">
            {act === "cancel" ? t.endedSkipped(skipped.length) : t.openSkipped(skipped.length)}
          </Text>
        )}
      </Confirm>
    </Paper>
  );
}

/** Change one after the other, and return how many: a job that has changed meanwhile is skipped. */
async function changeEach(act: Act, jobs: Job[]): Promise<number> {
  let done = 0;
  for (const { id } of jobs) {
    const params = { params: { path: { job_id: id } } };
    try {
      await (act === "cancel"
        ? gateway.POST("/jobs/{job_id}/cancel", params)
        : gateway.DELETE("/jobs/{job_id}", params));
      done += 1;
    } catch (error) {
      if (!(error instanceof ApiError && [404, 409].includes(error.status))) throw error;
    }
  }
  return done;
}

/** Acts for all jobs that match the filters, on any page. */
export function MatchingActs({ filter }: { filter: JobFilter }) {
  const t = useStrings(strings);
  const [act, setAct] = useState<Act | null>(null);
  const isEmpty = Object.keys(filter).length === 0;
  return (
    <>
      <Menu position="bottom-end">
        <Menu.Target>
          <Button variant="default" rightSection={<IconDots size={16} aria-hidden />}>{t.moreActs}</Button>
        </Menu.Target>
        <Menu.Dropdown>
          {isEmpty && <Menu.Label>{t.setFilter}</Menu.Label>}
          <ActItem enabled={!isEmpty} onClick={() => setAct("cancel")}>{t.cancelMatching}</ActItem>
          <ActItem enabled={!isEmpty} onClick={() => setAct("delete")}>{t.deleteMatching}</ActItem>
        </Menu.Dropdown>
      </Menu>
      {act && <ConfirmMatching act={act} filter={filter} onClose={() => setAct(null)} />}
    </>
  );
}

/** A menu item that can have the focus while it is disabled, so that the arrow keys and Escape work in the menu. */
function ActItem({ enabled, onClick, children }: { enabled: boolean; onClick: () => void; children: string }) {
  return (
    <Menu.Item data-disabled={!enabled || undefined} aria-disabled={!enabled} onClick={() => enabled && onClick()}>
      {children}
    </Menu.Item>
  );
}

function ConfirmMatching({ act, filter, onClose }: { act: Act; filter: JobFilter; onClose: () => void }) {
  const t = useStrings(strings);
  const finish = useFinish();
  const dryRun = useQuery({
    queryKey: ["jobs-dry-run", act, filter],
    queryFn: () => changeMatching(act, filter, true),
    gcTime: 0,
    retry: false,
  });
  const matched = dryRun.data?.matched;
  return (
    <Confirm
      opened onClose={onClose} title={act === "cancel" ? t.cancelTitle : t.deleteTitle}
      action={act === "cancel" ? t.cancelJobs : t.deleteJobs} disabled={!matched}
      onConfirm={async () => {
        // Nothing is changed that was not counted first.
        if (matched) finish(act, await changeMatching(act, filter, false));
      }}
    >
      {dryRun.isPending && <Text size="sm">{t.counting}</Text>}
      {dryRun.isError && <ErrorAlert error={dryRun.error} />}
      {matched !== undefined && (
        <Stack gap="xs">
          <Text size="sm" fw={600}>{t.matchCount(matched)}</Text>
          <Text size="sm">
            {matched === 0 ? t.nothing : act === "cancel" ? t.matchCancel : t.matchDelete}
          </Text>
        </Stack>
      )}
    </Confirm>
  );
}

/** Send a bulk request and those that go on with it, each of which changes 10,000 jobs at most. */
async function changeMatching(act: Act, filter: JobFilter, dryRun: boolean): Promise<Result> {
  const sum = { matched: 0, done: 0, skipped: 0 };
  let cursor: string | null = null;
  do {
    const request = { body: { filter, dry_run: dryRun, cursor } };
    const part: Result & { next_cursor: string | null } = await body(
      act === "cancel" ? gateway.POST("/jobs/cancel", request) : gateway.POST("/jobs/delete", request),
    );
    sum.matched += part.matched;
    sum.done += part.done;
    sum.skipped += part.skipped;
    cursor = part.next_cursor;
  } while (cursor !== null);
  return sum;
}

/** Return a function that says what was done, and reads the list again. */
function useFinish() {
  const t = useStrings(strings);
  const queries = useQueryClient();
  return (act: Act, { done, skipped }: Result) => {
    notifications.show({ message: act === "cancel" ? t.didCancel(done, skipped) : t.didDelete(done, skipped) });
    void queries.invalidateQueries({ queryKey: ["jobs"] });
  };
}
