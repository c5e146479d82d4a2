/** Shows the audit log with filters, and saves what they select. */

import { Button, Code, Group, Select, Skeleton, Stack, Table, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { notifications } from "@mantine/notifications";
import { IconDownload } from "@tabler/icons-react";
import { useInfiniteQuery } from "@tanstack/react-query";
import { useState } from "react";

import type { components } from "#api/accounts";
import { accounts, body } from "#/api/client";
import { type Caller, hasScope } from "#/api/session";
import { useNames } from "#/components/access/names";
import { downloadCsv, downloadJson } from "#/components/download";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { MoreButton } from "#/components/more-button";
import { CELL, ROW } from "#/components/plain";
import { useFormat, useStrings } from "#/language";
import type { Tenant } from "#/pages/people/organisation-choice";
import { strings } from "#/pages/people/strings";

type Entry = components["schemas"]["AuditEntry"];
const PAGE = 50;
const NAME = { maxWidth: 200 };
const DETAILS = { maxWidth: 360, wordBreak: "break-word" } as const;
const EXPORT_PAGE = 200;
const MAX_EXPORTED = 10_000;
const NO_FILTER = { action: "", actor: "", target: "", from: "", to: "" };

interface Props {
  caller: Caller;
  tenant: Tenant;
  /** The operator has chosen this tenant; otherwise operators see the entries of all. */
  chosen: boolean;
}

export function Audit({ caller, tenant, chosen }: Props) {
  const t = useStrings(strings);
  const [filter, setFilter] = useState(NO_FILTER);
  const [settled] = useDebouncedValue(filter, 300);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const names = useNames(hasScope(caller, "org:read") ? tenant.id : null);
  const owner = hasScope(caller, "operator") && chosen ? tenant.id : undefined;
  const read = (limit: number, before: string | undefined, signal?: AbortSignal) => body(accounts.GET("/audit", {
    params: {
      query: {
        limit, before, owner,
        action: settled.action || undefined, actor: settled.actor.trim() || undefined,
        target: settled.target.trim() || undefined,
        from: settled.from ? new Date(`${settled.from}T00:00:00`).toISOString() : undefined,
        to: settled.to ? addDay(settled.to) : undefined,
      },
    },
    ...(signal && { signal }),
  }));
  const list = useInfiniteQuery({
    queryKey: ["audit", owner, settled],
    initialPageParam: undefined as string | undefined,
    queryFn: ({ pageParam, signal }) => read(PAGE, pageParam, signal),
    getNextPageParam: (page) => (page.entries.length < PAGE ? undefined : page.entries.at(-1)?.id),
  });
  const save = async (write: (name: string, entries: Entry[]) => void) => {
    setError(null);
    setBusy(true);
    try {
      const entries: Entry[] = [];
      let more = true;
      while (more && entries.length < MAX_EXPORTED) {
        const page = await read(EXPORT_PAGE, entries.at(-1)?.id);
        entries.push(...page.entries);
        more = page.entries.length === EXPORT_PAGE;
      }
      write("moyin-audit", entries);
      notifications.show({ message: more ? t.exportedSome(entries.length) : t.exported(entries.length) });
    } catch (failure) {
      setError(failure as Error);
    } finally {
      setBusy(false);
    }
  };
  const set = (name: keyof typeof NO_FILTER) => (value: string) => setFilter((before) => ({ ...before, [name]: value }));
  const entries = list.data?.pages.flatMap((page) => page.entries) ?? [];
  return (
    <Stack>
      <Group align="end" gap="sm">
        <Select
          label={t.kind} w={170} value={filter.action} onChange={(value) => set("action")(value ?? "")} allowDeselect={false}
          data={[{ value: "", label: t.anyAction }, ...Object.entries(t.kinds).map(([value, label]) => ({ value, label }))]}
        />
        <TextInput label={t.actor} placeholder={t.actorHint} value={filter.actor} maxLength={128}
          onChange={(event) => set("actor")(event.currentTarget.value)} />
        <TextInput label={t.target} placeholder={t.targetHint} value={filter.target} maxLength={160}
          onChange={(event) => set("target")(event.currentTarget.value)} />
        <TextInput type="date" label={t.from} value={filter.from} onChange={(event) => set("from")(event.currentTarget.value)} />
        <TextInput type="date" label={t.to} value={filter.to} onChange={(event) => set("to")(event.currentTarget.value)} />
        <Button
          variant="default" loading={busy} leftSection={<IconDownload size={16} aria-hidden />} disabled={entries.length === 0}
          onClick={() => void save((name, rows) => downloadCsv(name, rows))}
        >
          {t.exportCsv}
        </Button>
        <Button
          variant="default" loading={busy} disabled={entries.length === 0}
          onClick={() => void save((name, rows) => downloadJson(name, rows))}
        >
          {t.exportJson}
        </Button>
      </Group>
      {error && <ErrorAlert error={error} />}
      {list.error && <ErrorAlert error={list.error} onRetry={() => void list.refetch()} />}
      {list.isPending && <Skeleton height={200} />}
      {list.isSuccess && entries.length === 0 && <EmptyState title={t.noEntries}>{t.noEntriesHint}</EmptyState>}
      {entries.length > 0 && (
        <Table.ScrollContainer minWidth={860} type="native" tabIndex={0}>
          <Table verticalSpacing="xs">
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t.time}</Table.Th><Table.Th>{t.actor}</Table.Th><Table.Th>{t.action}</Table.Th>
                <Table.Th>{t.target}</Table.Th><Table.Th>{t.details}</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {entries.map((entry) => (
                <AuditRow key={entry.id} entry={entry} actor={names.user(entry.actor)} target={names.user(entry.target)} />
              ))}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
      <MoreButton list={list} />
    </Stack>
  );
}

function AuditRow({ entry, actor, target }: { entry: Entry; actor: string | undefined; target: string | undefined }) {
  const t = useStrings(strings);
  const format = useFormat();
  return (
    <tr {...ROW}>
      <td className={`${CELL} no-wrap`}>{format.time(entry.at)}</td>
      <td className={CELL}>
        <p className="text-sm truncate" style={NAME} title={entry.actor}>{actor ?? entry.actor}</p>
        {entry.address && <p className="text-xs dimmed" title={t.address}>{entry.address}</p>}
      </td>
      <td className={CELL}><Code>{entry.action}</Code></td>
      <td className={CELL}><p className="text-sm truncate" style={NAME} title={entry.target}>{target ?? entry.target}</p></td>
      <td className={CELL}>
        <p className="text-xs" style={DETAILS}>
          {Object.entries(entry.details).map(([name, value]) => `${name}: ${show(value)}`).join(" · ")}
        </p>
      </td>
    </tr>
  );
}

function show(value: unknown): string {
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** Return the beginning of the day after a date, where the person is. */
function addDay(date: string): string {
  const day = new Date(`${date}T00:00:00`);
  day.setDate(day.getDate() + 1);
  return day.toISOString();
}
