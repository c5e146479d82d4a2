/** Lists jobs by filters, which the address keeps with the page. */

import { ActionIcon, Button, Checkbox, Group, Skeleton, Table } from "@mantine/core";
import { IconChevronLeft, IconChevronRight, IconRefresh } from "@tabler/icons-react";
import { useState } from "react";
import { useLocation, useSearchParams } from "wouter";
import { useHistoryState } from "wouter/use-browser-location";

import { hasScope, useCaller } from "#/api/session";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { PageHeader } from "#/components/page-header";
import { Reconnecting } from "#/components/reconnecting";
import { useStrings } from "#/language";

import { strings } from "../strings";
import { LIST } from "../types";
import { toFilter, toQuery } from "./address";
import { MatchingActs, SelectionActs } from "./bulk";
import { Filters } from "./filters";
import { useJobPage } from "./queries";
import { JobRow } from "./row";

/** How many pages of the list lie before this one in the browser's history. */
type HistoryState = { depth: number } | null;

export function JobList() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const [address] = useSearchParams();
  const [, navigate] = useLocation();
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const depth = useHistoryState<HistoryState>()?.depth ?? 0;
  const { page, live } = useJobPage(toQuery(address));
  const jobs = page.data?.jobs ?? [];
  const next = page.data?.next_cursor ?? null;
  const filter = toFilter(address);
  const mayChange = caller ? hasScope(caller, "jobs:write") : false;
  const shown = jobs.filter((job) => selected.has(job.id));

  const show = (changed: URLSearchParams, state: HistoryState = null) => {
    setSelected(new Set());
    navigate(changed.size > 0 ? `${LIST}?${changed}` : LIST, { state });
  };
  const turn = (cursor: string | null) => {
    const changed = new URLSearchParams(address);
    if (cursor) changed.set("cursor", cursor);
    else changed.delete("cursor");
    show(changed, cursor ? { depth: depth + 1 } : null);
  };
  const select = (id: string, isSelected: boolean) => {
    const changed = new Set(selected);
    if (isSelected) changed.add(id);
    else changed.delete(id);
    setSelected(changed);
  };

  return (
    <>
      <PageHeader title={t.title}>
        <Reconnecting live={live} />
        {mayChange && <MatchingActs filter={filter} />}
        <ActionIcon
          variant="default" size="input-sm" aria-label={t.refresh}
          onClick={() => void page.refetch()}
        >
          <IconRefresh size={18} aria-hidden />
        </ActionIcon>
      </PageHeader>
      <Filters address={address} onChange={show} />
      {mayChange && shown.length > 0 && <SelectionActs jobs={shown} onDone={() => setSelected(new Set())} />}
      {page.isError && <ErrorAlert error={page.error} onRetry={() => void page.refetch()} />}
      {page.isPending && <Skeleton h={320} />}
      {page.isSuccess && jobs.length === 0 && <Empty isFiltered={Object.keys(filter).length > 0} hasNext={next !== null} />}
      {page.isSuccess && jobs.length > 0 && (
        <Table layout="fixed" verticalSpacing="xs" opacity={page.isPlaceholderData ? 0.6 : 1} aria-busy={page.isPlaceholderData}>
          <Table.Thead>
            <Table.Tr>
              {mayChange && (
                <Table.Th w={40}>
                  <Checkbox
                    aria-label={t.selectAll} checked={shown.length === jobs.length}
                    indeterminate={shown.length > 0 && shown.length < jobs.length}
                    onChange={(event) =>
                      setSelected(new Set(event.currentTarget.checked ? jobs.map(({ id }) => id) : []))}
                  />
                </Table.Th>
              )}
              <Table.Td w={64} />
              <Table.Th>{t.job}</Table.Th>
              <Table.Th visibleFrom="sm" w={215}>{t.created}</Table.Th>
              <Table.Th visibleFrom="sm" w={130}>{t.time}</Table.Th>
              <Table.Th visibleFrom="sm" w={100} ta="right">{t.cost}</Table.Th>
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {jobs.map((job) => (
              <JobRow
                key={job.id} job={job} selected={mayChange ? selected.has(job.id) : undefined}
                onSelect={(isSelected) => select(job.id, isSelected)}
              />
            ))}
          </Table.Tbody>
        </Table>
      )}
      {(next !== null || address.has("cursor")) && (
        <Group component="nav" aria-label={t.pagesOfJobs} justify="flex-end" mt="md" gap="xs">
          {address.has("cursor") && <Button variant="default" onClick={() => turn(null)}>{t.newest}</Button>}
          {depth > 0 && (
            <Button
              variant="default" leftSection={<IconChevronLeft size={16} aria-hidden />} onClick={() => history.back()}
            >
              {t.previous}
            </Button>
          )}
          <Button
            variant="default" rightSection={<IconChevronRight size={16} aria-hidden />} disabled={next === null}
            onClick={() => turn(next)}
          >
            {t.next}
          </Button>
        </Group>
      )}
    </>
  );
}

function Empty({ isFiltered, hasNext }: { isFiltered: boolean; hasNext: boolean }) {
  const t = useStrings(strings);
  if (hasNext) return <EmptyState title={t.noMatchYet}>{t.noMatchYetHint}</EmptyState>;
  return isFiltered
    ? <EmptyState title={t.noMatch}>{t.noMatchHint}</EmptyState>
    : <EmptyState title={t.empty}>{t.emptyHint}</EmptyState>;
}
