/** Shows what text and renders cost, by day, person, key, model and template. */

import { Group, Paper, SegmentedControl, Select, SimpleGrid, Skeleton, Stack, Text, TextInput, Title } from "@mantine/core";
import { infiniteQueryOptions, keepPreviousData, type QueryClient, useInfiniteQuery } from "@tanstack/react-query";
import { useState } from "react";

import type { components } from "#api/models";
import { body, models } from "#/api/client";
import { hasScope, useCaller } from "#/api/session";
import { Budgets } from "#/components/access/budgets";
import { OrganisationSelect } from "#/components/access/organisation-select";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { MoreButton } from "#/components/more-button";
import { PageHeader } from "#/components/page-header";
import { useFormat, useStrings } from "#/language";
import { strings } from "#/pages/usage/strings";
import { UsageChart } from "#/pages/usage/usage-chart";
import { UsageTable } from "#/pages/usage/usage-table";

export type GroupBy = components["schemas"]["GroupBy"];
type Report = components["schemas"]["UsageReport"];
const RANGES = ["7", "30", "90"];
export const MEASURES = ["cost", "calls", "tokens"] as const;

const MAX_DAYS = 400;
// Rows of the table that are shown at once.
const PAGE = 100;
// What the table shows first; its report has the days of the chart, too.
const FIRST_GROUP = "model";

/** Return a date in UTC, in which the ledger counts days. */
function date(daysFromToday: number): string {
  return new Date(Date.now() + daysFromToday * 86_400_000).toISOString().slice(0, 10);
}

function readReport(from: string, last: string, owner: string, by: GroupBy, options: {
  daily?: boolean; limit?: number; cursor?: string | undefined; signal?: AbortSignal;
}): Promise<Report> {
  const { signal, ...page } = options;
  const to = nextDay(last).toISOString().slice(0, 10);
  return body(models.GET("/usage", {
    params: { query: { group_by: [by], from, to, ...(owner && { owner }), ...page } }, ...(signal && { signal }),
  }));
}

function buildReportQuery(from: string, last: string, owner: string, by: GroupBy) {
  return infiniteQueryOptions({
    queryKey: ["usage", from, last, owner, by],
    staleTime: 30_000,
    // Each page is summed anew.
    refetchOnWindowFocus: false,
    initialPageParam: undefined as string | undefined,
    queryFn: ({ pageParam, signal }) => readReport(from, last, owner, by, {
      limit: PAGE, cursor: pageParam, signal, ...(by === FIRST_GROUP && pageParam === undefined && { daily: true }),
    }),
    getNextPageParam: (page) => page.next_cursor ?? undefined,
  });
}

function nextDay(day: string): Date {
  return new Date(Date.parse(`${day}T00:00:00Z`) + 86_400_000);
}

/** Begin to read what the page shows first. */
export function prefetch(queries: QueryClient): void {
  void queries.prefetchInfiniteQuery(buildReportQuery(date(-29), date(0), "", FIRST_GROUP));
}

export default function UsagePage() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const [from, setFrom] = useState(date(-29));
  // Included, unlike the parameter of the API.
  const [last, setLast] = useState(date(0));
  // Of operators: an organisation, `*` for all tenants, or nothing for their own.
  const [tenant, setTenant] = useState<{ value: string; label: string } | null>(null);
  const owner = tenant?.value ?? "";
  const [group, setGroup] = useState<GroupBy>("model");
  const [measured, setMeasure] = useState<(typeof MEASURES)[number] | null>(null);
  // While a year is typed, the field has the years 2, 20 and 202; the API takes 400 days.
  const days = (nextDay(last).getTime() - Date.parse(`${from}T00:00:00Z`)) / 86_400_000;
  const isRange = days >= 1 && days <= MAX_DAYS;
  const first = useInfiniteQuery({ ...buildReportQuery(from, last, owner, FIRST_GROUP), enabled: isRange, placeholderData: keepPreviousData });
  const grouped = useInfiniteQuery({
    ...buildReportQuery(from, last, owner, group), enabled: isRange && group !== "day", placeholderData: keepPreviousData,
  });
  if (!caller) return null;
  const chosen = RANGES.find((days) => last === date(0) && from === date(1 - Number(days))) ?? "";
  const isOperator = hasScope(caller, "operator");
  const report = first.data?.pages[0];
  const pages = group === "day" ? report && [{ ...report, groups: report.days ?? [] }] : grouped.data?.pages;
  const ownTenant = { value: "", label: t.ownTenant };
  // Where everything is free, the days would all be empty.
  const measure = measured ?? (report && Number(report.total.cost_usd) === 0 ? "calls" : "cost");
  const names = Object.keys(t.groups) as GroupBy[];
  return (
    <Stack>
      <PageHeader title={t.title} />
      <Group align="end" gap="sm">
        <SegmentedControl
          aria-label={t.range} value={chosen} data={RANGES.map((days) => ({ value: days, label: t.days(Number(days)) }))}
          onChange={(days) => {
            setFrom(date(1 - Number(days)));
            setLast(date(0));
          }}
        />
        <TextInput type="date" label={t.from} value={from} max={last} onChange={(event) => setFrom(event.currentTarget.value)} />
        <TextInput type="date" label={t.to} value={last} min={from} onChange={(event) => setLast(event.currentTarget.value)} />
        {isOperator && (
          <OrganisationSelect
            label={t.tenant} w={200} fixed={[ownTenant, { value: "*", label: t.allTenants }]}
            // The labels follow the language.
            chosen={owner === "" ? ownTenant : owner === "*" ? { value: "*", label: t.allTenants } : tenant!}
            onChoose={setTenant}
          />
        )}
      </Group>
      {first.error && <ErrorAlert error={first.error} onRetry={() => void first.refetch()} />}
      {first.isPending && !first.error && <Skeleton height={360} />}
      {report && isRange && (
        <>
          <Totals report={report} />
          {report.budgets && report.budgets.length > 0 && (
            <Paper withBorder p="md">
              <Title order={3} size="h5" mb="sm">{t.budgets}</Title>
              <Budgets budgets={report.budgets} />
            </Paper>
          )}
          {report.total.calls === 0 ? <EmptyState title={t.empty}>{t.emptyHint}</EmptyState> : (
            <>
              <Paper withBorder p="md">
                <Group justify="space-between" mb="md">
                  <Title order={3} size="h5">{t.chart}</Title>
                  <SegmentedControl
                    size="xs" aria-label={t.measure} value={measure} onChange={setMeasure}
                    data={MEASURES.map((value) => ({ value, label: t[value] }))}
                  />
                </Group>
                <UsageChart groups={report.days ?? []} measure={measure} from={from} last={last} />
              </Paper>
              <Paper withBorder p="md">
                <Group justify="space-between" mb="sm" align="end">
                  <Title order={3} size="h5">{t.table}</Title>
                  <Select
                    aria-label={t.by} value={group} allowDeselect={false} w={180}
                    onChange={(value) => setGroup((value ?? "model") as GroupBy)}
                    data={names.filter((name) => name !== "owner" || isOperator).map((value) => ({ value, label: t.groups[value] }))}
                  />
                </Group>
                {grouped.error && grouped.error !== first.error && <ErrorAlert error={grouped.error} onRetry={() => void grouped.refetch()} />}
                {!pages && !grouped.error && <Skeleton height={160} />}
                {pages && (group === "day" || pages[0]?.group_by[0] === group) && (
                  <>
                    <UsageTable
                      pages={pages} group={group} caller={caller} owner={owner} name={`${from}_${last}`}
                      readAll={() => readReport(from, last, owner, group, {})}
                    />
                    {group !== "day" && <MoreButton list={grouped} />}
                  </>
                )}
              </Paper>
            </>
          )}
        </>
      )}
    </Stack>
  );
}

function Totals({ report }: { report: Report }) {
  const t = useStrings(strings);
  const format = useFormat();
  const { total } = report;
  const text = Number(total.cost_usd) - Number(total.render_cost_usd);
  const saved = total.dearest_cost_usd === null ? null : Number(total.dearest_cost_usd) - Number(total.cost_usd);
  const dearest = report.dearest.chat?.model;
  const seconds = (total.units.gpu_milliseconds ?? 0) / 1000;
  const cards = [
    [t.cost, format.usd(Number(total.cost_usd)), ""],
    [t.textCost, format.usd(text), `${format.number(total.input_tokens)} + ${format.number(total.output_tokens)} ${t.tokens}`],
    [t.renderCost, format.usd(Number(total.render_cost_usd)), seconds ? `${t.gpuTime}: ${format.seconds(seconds)}` : ""],
    [t.calls, format.number(total.calls), total.incomplete_calls ? `${t.incomplete}: ${format.number(total.incomplete_calls)}` : ""],
    ...(saved !== null && saved > 0 && dearest ? [[t.saved, format.usd(saved), t.savedHint(dearest)]] : []),
  ] as [string, string, string][];
  return (
    <SimpleGrid cols={{ base: 2, md: cards.length }}>
      {cards.map(([label, value, hint]) => (
        <Paper key={label} withBorder p="sm">
          <Text size="xs" c="dimmed">{label}</Text>
          <Text size="lg" fw={600}>{value}</Text>
          {hint && <Text size="xs" c="dimmed">{hint}</Text>}
        </Paper>
      ))}
    </SimpleGrid>
  );
}
