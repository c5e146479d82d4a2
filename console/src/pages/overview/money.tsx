/** Shows what today and this month cost, against everything on the dearest model. */

import { Group, Paper, Progress, SimpleGrid, Skeleton, Stack, Text } from "@mantine/core";
import type { components } from "#api/models";
import type { UseQueryResult } from "@tanstack/react-query";

import { getToday } from "#/api/cluster";
import { ErrorAlert } from "#/components/error-alert";
import { Panel } from "#/components/panel";
import { usePercent } from "#/components/small-numbers";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

type Report = Omit<components["schemas"]["UsageReport"], "budgets">;
type Usage = Pick<
  components["schemas"]["UsageBody"], "calls" | "cost_usd" | "render_cost_usd" | "dearest_cost_usd"
>;

const NOTHING: Usage = { calls: 0, cost_usd: "0", render_cost_usd: "0", dearest_cost_usd: null };

export function Money({ usage: report, isOperator }: { usage: UseQueryResult<Report>; isOperator: boolean }) {
  const t = useStrings(strings).money;
  const today = getToday();
  return (
    <Panel title={t.title} aside={<Text size="xs" c="dimmed">{isOperator ? t.all : t.own}</Text>}>
      {report.isError && <ErrorAlert error={report.error} onRetry={() => void report.refetch()} />}
      {!report.isError && (
        <SimpleGrid cols={{ base: 1, sm: 2 }}>
          <Period
            title={t.today} report={report.data}
            usage={report.data?.groups.find((group) => group.day === today) ?? NOTHING}
          />
          <Period title={t.month} report={report.data} usage={report.data?.total ?? NOTHING} />
        </SimpleGrid>
      )}
    </Panel>
  );
}

function Period({ title, usage, report }: { title: string; usage: Usage; report: Report | undefined }) {
  const t = useStrings(strings).money;
  const format = useFormat();
  const percent = usePercent();
  // Of sums above a dollar nobody reads the hundredths of a cent.
  const usd = (value: number) => format.usd(value >= 1 ? Math.round(value * 100) / 100 : value);
  const total = Number(usage.cost_usd);
  const renders = Number(usage.render_cost_usd);
  const dearest = usage.dearest_cost_usd === null ? null : Number(usage.dearest_cost_usd);
  const model = report?.dearest.chat?.model ?? report?.dearest.embeddings?.model;
  return (
    <Paper withBorder p="sm" component="section" aria-label={title}>
      <Skeleton visible={report === undefined}>
        <Group justify="space-between" align="baseline" gap="xs">
          <Text fw={600}>{title}</Text>
          <Text size="xs" c="dimmed">{t.calls(format.number(usage.calls))}</Text>
        </Group>
        <Text fz={28} fw={700} lh={1.3}>{usd(total)}</Text>
        <Progress.Root size="lg" my="xs" role="img" aria-label={t.split}>
          {total > 0 && <Progress.Section value={100 * (total - renders) / total} color="indigo" withAria={false} />}
          {total > 0 && <Progress.Section value={100 * renders / total} color="teal" withAria={false} />}
        </Progress.Root>
        <Group gap="md">
          {total === 0 && <Text size="sm" c="dimmed">{t.nothing}</Text>}
          {total > 0 && <Legend color="indigo" name={t.text} value={usd(total - renders)} />}
          {total > 0 && <Legend color="teal" name={t.renders} value={usd(renders)} />}
        </Group>
        {dearest !== null && model !== undefined && usage.calls > 0 && (
          <Stack gap={0} mt="xs">
            <Text size="sm" c="dimmed">{t.dearest(usd(dearest), model)}</Text>
            <Text size="sm" fw={600}>
              {dearest >= total
                ? t.saved(usd(dearest - total), percent(dearest === renders ? 0 : (dearest - total) / (dearest - renders)))
                : t.failed}
            </Text>
          </Stack>
        )}
      </Skeleton>
    </Paper>
  );
}

function Legend({ color, name, value }: { color: string; name: string; value: string }) {
  return (
    <Group gap={6} wrap="nowrap">
      <span
        aria-hidden
        style={{ width: 10, height: 10, borderRadius: 3, background: `var(--mantine-color-${color}-filled)` }}
      />
      <Text size="sm">{name}: {value}</Text>
    </Group>
  );
}
